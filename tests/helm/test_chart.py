"""The chart, rendered by helm for every scenario in helm/distilrank/ci, and what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from typer.testing import CliRunner

from distilrank import __version__, cli, config
from distilrank.serving import settings as serving
from helm import values
from pipelines import __main__ as pipelines
from pipelines import kubeflow
from pipelines.recurring_runs import reconcile, spec
from tests import kfp_server

CHART = values.CHART
SCENARIOS = sorted(path.stem.removesuffix("-values") for path in (CHART / "ci").glob("*-values.yaml"))
NAMESPACES = {"gke": "search", "serving-only": "search"}
RELEASE, FULL = "ranker", "ranker-distilrank"
KUBERNETES = "1.36"


def _helm() -> str:
    own = Path(sys.prefix) / "tools" / "helm"
    path = str(own) if own.exists() else shutil.which("helm")
    assert path, f"no helm: neither {own} nor one on PATH; `make test` puts it there"
    return path


def _run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([_helm(), *map(str, arguments)], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def _scenario(name: str) -> list[str | Path]:
    return ["--namespace", NAMESPACES.get(name, "kubeflow"), "--values", CHART / "ci" / f"{name}-values.yaml"]


def _template(*arguments: str | Path) -> list[dict[str, Any]]:
    text = _run("template", RELEASE, CHART, *arguments).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def _refusal(*arguments: str | Path) -> str:
    done = _run("template", RELEASE, CHART, *arguments, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[dict[str, Any]]]:
    """The objects of each scenario."""
    return {name: _template(*_scenario(name)) for name in SCENARIOS}


def _find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (match,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return match


def _pods(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The template of each pod, with what it belongs to."""
    for item in objects:
        spec = item.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield item, spec["template"]


@pytest.fixture(scope="session")
def written(rendered: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each scenario's configurations and schedule file, as a hook finds them."""
    folders = {}
    for name, objects in rendered.items():
        maps = [item for item in objects if item["metadata"]["name"] == f"{FULL}-configurations"]
        if maps:
            folders[name] = tmp_path_factory.mktemp(name)
            for file, text in maps[0]["data"].items():
                (folders[name] / file).write_text(text, encoding="utf-8")
    return folders


@pytest.mark.parametrize("name", SCENARIOS)
def test_lint(name: str) -> None:
    _run("lint", "--strict", CHART, *_scenario(name))


@pytest.mark.parametrize("name", SCENARIOS)
def test_kubernetes_takes_every_object(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    crd = yaml.safe_load((Path(__file__).parents[1] / "crds" / "servicemonitors.yaml").read_text(encoding="utf-8"))
    assert rendered[name]
    for item in rendered[name]:
        if item["kind"] == "ServiceMonitor":
            jsonschema.validate(item, crd)
        else:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    named = [(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]) for item in rendered[name]]
    assert len(named) == len(set(named))
    assert "Secret" not in {item["kind"] for item in rendered[name]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_pods_are_restricted(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    """Pod Security Standards, profile `restricted`, and a root file system that nobody writes."""
    pods = [template["spec"] for _, template in _pods(rendered[name])]
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(volume.keys() <= {"name", *VOLUMES} for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} == container["resources"].keys()
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert mounts["/tmp"] == "tmp" and mounts["/home/distilrank"] == "home"
            assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
            assert re.search(r"(:\d+\.\d+\.\d+|@sha256:[0-9a-f]{64})$", container["image"])


VOLUMES = ("emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim")


@pytest.mark.parametrize("name", SCENARIOS)
def test_references_name_existing_objects(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    objects = rendered[name]
    chart_values = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    outside = {"default", chart_values.get("storage", {}).get("existingClaim"), "internal-ca"}
    made = {(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]) for item in objects}
    labels = [template["metadata"]["labels"] for _, template in _pods(objects)]
    for owner, template in _pods(objects):
        namespace, pod = owner["metadata"]["namespace"], template["spec"]
        references = {("ServiceAccount", pod["serviceAccountName"])}
        for volume in pod["volumes"]:
            references |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            references |= {("PersistentVolumeClaim", claim)} if claim else set()
        assert {(kind, namespace, referent) for kind, referent in references if referent not in outside} <= made
    for item in objects:
        selector = item.get("spec", {}).get("selector") or item.get("spec", {}).get("podSelector")
        if selector:
            references = selector.get("matchLabels", selector).items()
            pool = labels
            if item["kind"] == "ServiceMonitor":
                pool = [other["metadata"]["labels"] for other in objects if other["kind"] == "Service"]
            assert any(references <= each.items() for each in pool), item["metadata"]["name"]
        if item["kind"] == "RoleBinding" and item["roleRef"]["name"].startswith(FULL):
            assert ("Role", item["metadata"]["namespace"], item["roleRef"]["name"]) in made
        if item["kind"] == "HorizontalPodAutoscaler":
            assert ("Deployment", item["metadata"]["namespace"], item["spec"]["scaleTargetRef"]["name"]) in made
    for item in objects:
        if item["kind"] == "Service":
            assert item["spec"]["ports"][0]["targetPort"] == "http"
            (pod,) = [
                t["spec"]
                for _, t in _pods(objects)
                if item["spec"]["selector"].items() <= t["metadata"]["labels"].items()
            ]
            assert "http" in [port["name"] for port in pod["containers"][0]["ports"]]


def test_configurations_are_read(written: dict[str, Path]) -> None:
    assert sorted(written) == [name for name in SCENARIOS if name != "serving-only"]
    for name, folder in written.items():
        declared = spec.read(folder / "schedules.yaml")
        assert declared.owner == f"{NAMESPACES.get(name, 'kubeflow')}.{RELEASE}"
        assert declared.schedules
        for path in folder.glob("*.yaml"):
            if path.name != "schedules.yaml":
                config.load(path)
    # Helm would write 2621288 as 2.621288e+06, which must stay a whole number.
    assert config.load(written["pipelines-only"] / "sample.yaml").data.expected_rows == 2621288


def test_own_keys_of_a_configuration_win(tmp_path: Path) -> None:
    own = {
        "registry": {"uri": "gs://own/registry"},
        "cluster": {"images": {"ops": "own/ops:7"}, "train": {"gpu": 2}, "volumes": [{"claim": "own", "path": "/own"}]},
        "compute": {"checkpoint_dir": "/own/resume"},
    }
    chart_values = {
        "configurations": {"one": {"data": {"source": "demo_shop"}, **own}},
        "cluster": {"train": {"gpu": 1, "memory": "32Gi"}, "env": {"A": "b"}, "pull_secrets": ["chosen"]},
        "images": {"pullSecrets": ["pull"]},
        "storage": {"enabled": True, "accessMode": "ReadWriteOnce"},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(chart_values), encoding="utf-8")
    objects = _template("--values", tmp_path / "values.yaml")
    (tmp_path / "one.yaml").write_text(_find(objects, "ConfigMap", f"{FULL}-configurations")["data"]["one.yaml"])
    loaded = config.load(tmp_path / "one.yaml")
    assert loaded.registry.uri == "gs://own/registry"
    assert (loaded.cluster.images.ops, loaded.cluster.images.train) == ("own/ops:7", f"distilrank/train:{__version__}")
    assert (loaded.cluster.train.gpu, loaded.cluster.train.memory) == (2, "32Gi")
    assert loaded.cluster.env == {"A": "b", "HF_HOME": "/distilrank/hf"}
    assert loaded.cluster.pull_secrets == ("chosen",)
    assert [(volume.claim, volume.path) for volume in loaded.cluster.volumes] == [
        ("own", "/own"),
        (FULL, "/distilrank"),
    ]
    assert loaded.compute.checkpoint_dir == "/own/resume"
    assert loaded.prepare.log_cache_dir == "/distilrank/log"


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "serving-only"])
def test_hooks_call_an_existing_command(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    when = {}
    for verb in ("apply", "delete"):
        job = _find(rendered[name], "Job", f"{FULL}-schedules-{verb}")
        when[verb] = job["metadata"]["annotations"]["helm.sh/hook"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["python", "-m", "pipelines", "schedule", verb]
        command = typer.main.get_command(pipelines.app).commands["schedule"].commands[verb]  # type: ignore[attr-defined]
        params = command.make_context(verb, list(container["args"])).params
        assert str(params["file"]) == "/etc/distilrank/schedules.yaml"
        assert params["namespace"] == ("search-team" if name == "gke" else "")
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        files = [params[key] for key in ("file", "token_file", "ca_file") if params[key]]
        assert {str(Path(file).parent) for file in files} == mounts - {"/tmp", "/home/distilrank"}
    assert when == {"apply": "post-install,post-upgrade,post-rollback", "delete": "pre-delete"}


def test_a_hook_that_succeeded_leaves_nothing(rendered: dict[str, list[dict[str, Any]]]) -> None:
    """Helm removes nothing else of a hook at uninstall, for hooks are no objects of the release."""
    for objects in rendered.values():
        for item in objects:
            annotations = item["metadata"].get("annotations", {})
            if "helm.sh/hook" not in annotations:
                continue
            assert item["kind"] == "Job"
            assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
            assert annotations["helm.sh/hook-output-log-policy"] == "hook-succeeded,hook-failed"
            assert item["spec"]["ttlSecondsAfterFinished"] == 7 * 24 * 3600
            assert item["spec"]["activeDeadlineSeconds"] == 900


@pytest.mark.parametrize("name", ["demo", "on-premises"])
def test_the_volume_is_prepared_before_schedules(name: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    pods, weights = {}, {}
    for job in ("storage-prepare", "storage-check", "schedules-apply"):
        manifest = _find(rendered[name], "Job", f"{FULL}-{job}")
        annotations = manifest["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "post-install,post-upgrade,post-rollback"  # the claim is made before
        weights[job], pods[job] = int(annotations["helm.sh/hook-weight"]), manifest["spec"]["template"]["spec"]
    assert weights["storage-prepare"] < weights["storage-check"] < weights["schedules-apply"]
    assert pods["storage-prepare"]["securityContext"]["fsGroup"] == 10001
    # As kfp's security context makes an executor's pod: user and group, and no group of volumes.
    assert {"fsGroup", "supplementalGroups"}.isdisjoint(pods["storage-check"]["securityContext"])
    claim = _find(rendered[name], "PersistentVolumeClaim", FULL)
    folders = {"hf", "log", "registry", "resume", "versions"} | ({"evidently"} if name == "on-premises" else set())
    for verb in ("prepare", "check"):
        (container,) = pods[f"storage-{verb}"]["containers"]
        assert container["command"] == ["python", "-m", "distilrank", "volume", verb]
        command = typer.main.get_command(cli.app).commands["volume"].commands[verb]  # type: ignore[attr-defined]
        params = command.make_context(verb, list(container["args"])).params
        assert (str(params["root"]), set(params["folders"])) == ("/distilrank", folders)
        (volume,) = [each for each in pods[f"storage-{verb}"]["volumes"] if each["name"] == "storage"]
        assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "storage"]
        assert mount == {"name": "storage", "mountPath": "/distilrank"}


def test_what_is_written_to_the_volume_has_a_folder_that_is_prepared(
    rendered: dict[str, list[dict[str, Any]]], written: dict[str, Path]
) -> None:
    (container,) = _find(rendered["on-premises"], "Job", f"{FULL}-storage-check")["spec"]["template"]["spec"][
        "containers"
    ]
    prepared = {f"/distilrank/{folder}" for folder in container["args"][1:]}
    loaded = config.load(written["on-premises"] / "shop.yaml")
    assert prepared == {
        loaded.registry.uri,
        loaded.registry.cache_dir,
        loaded.compute.checkpoint_dir,
        loaded.prepare.log_cache_dir,
        loaded.drift.workspace,
        loaded.cluster.env["HF_HOME"],
    }


def test_the_volume_is_prepared_where_the_runs_are() -> None:
    common = ["--set", "storage.enabled=true", "--set", "kubeflow.namespace=runs"]
    own = ["--set", "storage.accessMode=ReadWriteOnce", "--set", "registry.uri=gs://shop/ranker"]
    objects = _template("--namespace", "search", *common, *own)
    namespaces = {(item["kind"], item["metadata"]["name"]): item["metadata"]["namespace"] for item in objects}
    assert namespaces == dict.fromkeys(
        [("PersistentVolumeClaim", FULL), ("Job", f"{FULL}-storage-prepare"), ("Job", f"{FULL}-storage-check")], "runs"
    )
    (container,) = _find(objects, "Job", f"{FULL}-storage-check")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["/distilrank", "hf", "log", "resume", "versions"]  # the registry is not on it
    existing = ["--set", "storage.existingClaim=models"]
    assert _template(*common, *existing) == []
    kinds = [item["kind"] for item in _template(*common, *existing, "--set", "storage.prepare=always")]
    assert kinds == ["Job", "Job"]
    kinds = [item["kind"] for item in _template(*common, *own, "--set", "storage.prepare=never")]
    assert kinds == ["PersistentVolumeClaim"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gke", {"--failed-since": "1d", "--max-retries": "3", "--namespace": "search-team"}),
        ("on-premises", {"--failed-since": "6h", "--max-retries": "1"}),
    ],
)
def test_failed_runs_are_retried(name: str, options: dict[str, str], rendered: dict[str, list[dict[str, Any]]]) -> None:
    spec = _find(rendered[name], "CronJob", f"{FULL}-retries")["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"]) == ("Forbid", "Etc/UTC")
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0  # the next tick sees what is left
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 900
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    hook = _find(rendered[name], "Job", f"{FULL}-schedules-apply")["spec"]["template"]["spec"]
    (container,), (applying,) = pod["containers"], hook["containers"]
    assert container["command"] == ["python", "-m", "pipelines", "retry"]
    chart_values = dict(option.split("=", 1) for option in container["args"])
    own = {"--failed-since", "--max-retries"}
    # The connection is the hooks': one template makes both pods.
    connection = dict(option.split("=", 1) for option in applying["args"])
    del connection["--experiment"]
    assert {key: value for key, value in chart_values.items() if key not in own} == connection
    assert options.items() <= chart_values.items()
    assert {key: value for key, value in pod.items() if key != "containers"} == {
        key: value for key, value in hook.items() if key != "containers"
    }
    assert container["volumeMounts"] == applying["volumeMounts"]
    command = typer.main.get_command(pipelines.app).commands.get("retry")  # type: ignore[attr-defined]
    if command is not None:
        command.make_context("retry", list(container["args"]))


def test_only_retries_grant_rights_on_runs(rendered: dict[str, list[dict[str, Any]]]) -> None:
    """Verbs and resource as kubeflow/pipelines 2.17.0 has them, backend/src/apiserver/server/run_server.go."""

    def rights(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
        rules = _find(objects, "Role", f"{FULL}-submitter")["rules"]
        return {(name, verb) for rule in rules for name in rule["resources"] for verb in rule["verbs"]}

    more = rights(rendered["gke"]) - rights(_template(*_scenario("gke"), "--set", "retries.enabled=false"))
    assert more == {("runs", verb) for verb in ("get", "list", "readArtifact", "retry")}


KINDS = ("ops", "train")
RIGHTS = {
    "GetHealthz": None,
    "ListExperiments": ("experiments", "list"),
    "CreateExperiment": ("experiments", "create"),
    "ListPipelines": ("pipelines", "list"),
    "CreatePipeline": ("pipelines", "create"),
    "ListPipelineVersions": ("pipelines/versions", "list"),
    "GetPipelineVersion": ("pipelines/versions", "get"),
    "UploadPipelineVersion": ("pipelines/versions", "create"),
    "ListRecurringRuns": ("jobs", "list"),
    "CreateRecurringRun": ("jobs", "create"),
    "EnableRecurringRun": ("jobs", "enable"),
    "DeleteRecurringRun": ("jobs", "delete"),
    "ListRuns": ("runs", "list"),
    "GetRun": ("runs", "get"),
    "RetryRun": ("runs", "retry"),
    "ReadArtifact": ("runs", "readArtifact"),
}
"""What Kubeflow's API server asks Kubernetes before it does what is asked of it, in multi-user mode."""


def test_hooks_keep_the_recurring_runs(
    rendered: dict[str, list[dict[str, Any]]], written: dict[str, Path], tmp_path: Path
) -> None:
    """As Helm would run them, against an API server that holds every request to the published document."""
    server = kfp_server.Server(kfp_server.Document())
    store = server.store
    store.multi_user, store.namespaces, store.token = True, {"search-team"}, "token-of-the-submitter"
    (tmp_path / "token").write_text(store.token)
    places = {
        "/etc/distilrank": str(written["gke"]),
        "/var/run/secrets/kubeflow/pipelines": str(tmp_path),
        "http://ml-pipeline.kubeflow:8888": server.url,
    }

    def hook(verb: str) -> str:
        job = _find(rendered["gke"], "Job", f"{FULL}-schedules-{verb}")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        call = " ".join([*container["command"][3:], *container["args"]])
        for mount, here in places.items():
            call = call.replace(mount, here)
        done = CliRunner().invoke(pipelines.app, call.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    hook("apply")
    runs = {run["display_name"]: run for run in store.recurring.values()}
    assert sorted(runs) == ["distill-weekly", "monitor-daily"]
    assert {(run["mode"], run["namespace"], run["service_account"]) for run in runs.values()} == {
        ("ENABLE", "search-team", f"{FULL}-runner")
    }
    for content in store.contents.values():  # compiled with the values' images and resources
        images = set(re.findall(rb"image: (\S+)", content))
        assert images == {
            f"europe-docker.pkg.dev/shop/search/distilrank/{kind}:{__version__}".encode() for kind in KINDS
        }
        assert b"cloud.google.com/gke-accelerator" in content
    hook("delete")
    assert not store.recurring and not store.problems
    rules = _find(rendered["gke"], "Role", f"{FULL}-submitter")["rules"]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    used = {RIGHTS[operation.partition("_")[2] or operation] for operation in store.requests} - {None}
    assert used <= granted
    server.shutdown()


def test_the_token_is_kubeflows_alone(rendered: dict[str, list[dict[str, Any]]]) -> None:
    pod = _find(rendered["gke"], "Job", f"{FULL}-schedules-apply")["spec"]["template"]["spec"]
    (token,) = [volume for volume in pod["volumes"] if volume["name"] == "token"]
    source = token["projected"]["sources"][0]["serviceAccountToken"]
    assert (source["audience"], source["path"]) == ("pipelines.kubeflow.org", "token")
    pod = _find(rendered["disconnected"], "Job", f"{FULL}-schedules-apply")["spec"]["template"]["spec"]
    (token,) = [volume for volume in pod["volumes"] if volume["name"] == "token"]
    assert token["secret"] == {"secretName": "kubeflow-token", "items": [{"key": "token", "path": "token"}]}


def test_accounts_have_the_rights_that_they_need_and_no_others(rendered: dict[str, list[dict[str, Any]]]) -> None:
    roles = [(name, item) for name, objects in rendered.items() for item in objects if item["kind"] == "Role"]
    assert sorted((name, role["metadata"]["name"].removeprefix(f"{FULL}-")) for name, role in roles) == [
        ("gke", "submitter"),
        ("on-premises", "trainjobs"),
    ]
    for _, role in roles:
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
    accounts = {item["metadata"]["name"] for item in rendered["gke"] if item["kind"] == "ServiceAccount"}
    assert accounts == {f"{FULL}-{name}" for name in ("submitter", "runner", "promoter", "server")}
    binding = _find(rendered["gke"], "RoleBinding", f"{FULL}-submitter")
    assert binding["metadata"]["namespace"] == "search-team"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": f"{FULL}-submitter", "namespace": "search"}]
    # As docs/several-nodes.md has it.
    (shown,) = re.findall(
        r"kind: Role\n.*?\nrules:\n(.*?)---", (CHART.parents[1] / "docs" / "several-nodes.md").read_text(), re.S
    )
    assert _find(rendered["on-premises"], "Role", f"{FULL}-trainjobs")["rules"] == yaml.safe_load(shown)


@pytest.mark.parametrize("name", ["gke", "on-premises", "serving-only"])
def test_the_service_starts_as_rendered(name: str, rendered: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(_find(rendered[name], "ConfigMap", f"{FULL}-serving")["data"]["serve.yaml"])
    read = serving.load(tmp_path / "serve.yaml", {})
    assert (read.host, read.port) == ("0.0.0.0", 8080)
    spec = _find(rendered[name], "Deployment", f"{FULL}-serving")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > read.drain_seconds + read.timeout_seconds
    assert container["ports"][0]["containerPort"] == read.port
    assert float(container["resources"]["requests"]["cpu"]) >= read.threads
    assert container["command"][:4] == ["python", "-m", "distilrank", "serve"]
    command = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    command.make_context("serve", container["command"][4:])
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert str(Path(read.token_file).parent) in mounts
    if read.registry.startswith("/"):
        assert mounts["/distilrank"]["readOnly"] is True


@pytest.mark.parametrize(
    ("values", "credentials"),
    [
        ([], {"name": "ranker-tokens", "key": "tokens"}),
        (["serving.token.metricsKey=prometheus"], {"name": "ranker-tokens", "key": "prometheus"}),
        (["serving.settings.open_metrics=true"], None),
        (["serving.token.secret="], None),
    ],
)
def test_prometheus_sends_the_token_that_metrics_need(values: list[str], credentials: dict[str, str] | None) -> None:
    options = [part for value in (*values, "serviceMonitor.enabled=true") for part in ("--set", value)]
    objects = _template(*_scenario("on-premises"), *options)
    (monitor,) = [item for item in objects if item["kind"] == "ServiceMonitor"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint.get("authorization", {}).get("credentials") == credentials


def test_collection_and_pages_are_called_as_they_are(rendered: dict[str, list[dict[str, Any]]]) -> None:
    job = _find(rendered["on-premises"], "CronJob", f"{FULL}-collection")["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "distilrank", "registry", "gc"]
    command = typer.main.get_command(cli.app).commands["registry"].commands["gc"]  # type: ignore[attr-defined]
    assert command.make_context("gc", list(container["args"])).params["keep"] == 10
    spec = _find(rendered["on-premises"], "Deployment", f"{FULL}-ui")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"][:2] == ["evidently", "ui"]
    flags = dict(option.split("=") for option in container["command"][2:])
    assert flags["--port"] == str(container["ports"][0]["containerPort"])
    assert (flags["--workspace"], flags["--host"]) == ("/distilrank/evidently", "0.0.0.0")
    # Its options, read and not imported, which would take longer than all else here.
    package = importlib.util.find_spec("evidently")
    assert package is not None and package.origin is not None
    tree = ast.parse((Path(package.origin).parent / "cli" / "ui.py").read_text(encoding="utf-8"))
    (ui,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "ui"]
    assert {name.removeprefix("--") for name in flags} <= {argument.arg for argument in ui.args.args}


def test_network_policies_allow_what_is_needed(rendered: dict[str, list[dict[str, Any]]]) -> None:
    policies = {
        item["metadata"]["name"]: item["spec"] for item in rendered["on-premises"] if item["kind"] == "NetworkPolicy"
    }
    assert sorted(policies) == [f"{FULL}-{name}" for name in ("collection", "retries", "schedules", "serving", "ui")]
    for name in ("retries", "schedules"):
        assert policies[f"{FULL}-{name}"]["ingress"] == []
        assert {"ports": [{"port": 8888}]} in policies[f"{FULL}-{name}"]["egress"]
    (disconnected,) = [item["spec"] for item in rendered["disconnected"] if item["kind"] == "NetworkPolicy"]
    assert {"ports": [{"port": 443}]} in disconnected["egress"]  # the URL names no port


def test_nothing_is_made_unless_it_is_asked_for() -> None:
    assert _template() == []
    assert _template("--set", "global.anything=1") == []


def test_notes_say_what_to_do_next() -> None:
    notes = _run("install", RELEASE, CHART, "--dry-run=client", *_scenario("on-premises")).stdout.partition("NOTES:")[2]
    assert "distill-monthly: distill with shop, 0 0 2 1 * * in Europe/Berlin" in notes
    assert f"port-forward service/{FULL}-ui 8000:80" in notes
    assert f"http://{FULL}-serving.kubeflow:8080/v1/score" in notes
    assert "Failed runs of the last 6h are retried at most 1 times each, on the schedule */30 * * * * in UTC" in notes
    assert f"kubectl --namespace kubeflow get persistentvolumeclaim {FULL}" in notes
    assert "Off:" not in notes


@pytest.mark.parametrize("tag", [*config.MOVING_TAGS, "Latest"])
def test_a_tag_that_moves_is_refused(tag: str) -> None:
    message = _refusal(*_scenario("pipelines-only"), "--set", f"images.train.tag={tag}")
    assert (
        f'images.train is "distilrank/train:{tag}", whose tag moves: expected a tag that is never pushed again'
        in message
    )


PLANS = json.dumps([{"name": "weekly", "pipeline": "distill", "config": "sample", "cron": "0 3 * * 1"}] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["configurations.sample.cluster.images.ops=registry:5000/own/ops"],
            'configurations.sample.cluster.images.ops is "registry:5000/own/ops", without tag or digest: expected a '
            "tag that is never pushed again (a version) or @sha256:DIGEST",
        ),
        (["kubeflow.host="], "schedules are declared, but kubeflow.host is empty: expected the URL of the Kubeflow"),
        (
            ["schedules[0].config=esci"],
            'schedule esci-monthly: config is "esci": expected a name in configurations (sample)',
        ),
        (
            ["registry.uri=registry"],
            'configurations.sample: registry.uri is "registry", which is a different folder in every pod: expected '
            "gs://BUCKET/PREFIX, or the absolute path of a folder of a volume",
        ),
        (["registry.uri="], "configurations.sample: no registry is named: expected registry.uri"),
        (
            ["kubeflow.multiUser=true"],
            'kubeflow.multiUser is true, but kubeflow.auth.kind is "none": expected serviceAccount',
        ),
        (
            ["kubeflow.auth.kind=token"],
            'kubeflow.auth.kind is "token", but kubeflow.auth.secret is empty: expected the',
        ),
        (
            ["ui.enabled=true"],
            "ui.enabled is true, but storage.enabled is not: expected a volume that keeps the Evidently",
        ),
        (
            ["ui.enabled=true", "storage.enabled=true", "storage.existingClaim=own", "kubeflow.namespace=other"],
            "storage is in the namespace of the runs (other), where service, UI and collection of the namespace",
        ),
        (
            ["storage.enabled=true"],
            "storage.accessMode is empty, but the chart creates the claim: expected ReadWriteMany, with a storage "
            "class that offers it (NFS, CephFS, Filestore, EFS, Azure Files; with most clusters' default class the "
            "claim would stay Pending), or ReadWriteOnce, which any class offers, but then every pod that mounts it "
            "must run on one node",
        ),
        (
            ["storage.enabled=true", "storage.accessMode=ReadWriteOnce", "cluster.run_as_user=1000"],
            "configurations.sample: cluster.run_as_user of runs is 1000, but the chart's pods have 10001 "
            "(pods.runAsUser): expected the same, since both write to the volume, or storage.prepare: never",
        ),
        (
            ["storage.enabled=true", "storage.accessMode=ReadWriteMany", "pods.runAsGroup=2000"],
            "configurations.sample: cluster.run_as_group of runs is 10001, but the chart's pods have 2000 "
            "(pods.runAsGroup)",
        ),
        (
            ["kubeflow.host=", "schedules=null", "retries.enabled=true"],
            "retries.enabled is true, but kubeflow.host is empty: expected the URL of the Kubeflow Pipelines API",
        ),
        (
            ["serving.enabled=true", "registry.uri=/folder/registry"],
            'registry.uri is "/folder/registry": expected gs://BUCKET/PREFIX, or a folder below storage.path',
        ),
        (
            ["serving.enabled=true", "serving.autoscaling.enabled=true", "serving.autoscaling.minReplicas=9"],
            "serving.autoscaling.minReplicas is 9: expected at most maxReplicas (8)",
        ),
        (["serviceMonitor.enabled=true"], "serviceMonitor.enabled is true, but serving.enabled is not"),
        # By the schema:
        (["storage.accessMode=ReadOnlyMany"], "at '/storage/accessMode': value must be one of"),
        (["retries.failedSince=yesterday"], "at '/retries/failedSince': 'yesterday' does not match pattern"),
        (["retries.maxRetries=0"], "at '/retries/maxRetries': minimum: got 0, want 1"),
        (["hoks.retries=1"], "additional properties 'hoks' not allowed"),
        (["hooks.retrys=1"], "at '/hooks': additional properties 'retrys' not allowed"),
        (["hooks.retries=two"], "at '/hooks/retries': got string, want integer"),
        (
            ["configurations.sample.student.optimiser.epochs=3"],
            "at '/configurations/sample/student': additional properties 'optimiser' not allowed",
        ),
        (
            ["configurations.sample.cpu_overrides.teacher.epochs=3"],
            "at '/configurations/sample/cpu_overrides/teacher': additional properties 'epochs' not allowed",
        ),
        (
            ["configurations.sample.cpu_overrides.data.judged_querys=3"],
            "at '/configurations/sample/cpu_overrides/data': additional properties 'judged_querys' not allowed",
        ),
        (
            ["configurations.sample.data.path=a"],
            "at '/configurations/sample/data': additional properties 'path' not allowed",
        ),
        (
            ["configurations.sample.data.source=msmarco"],
            "at '/configurations/sample/data/source': value must be one of 'demo_shop', 'esci', 'home_depot'",
        ),
        (["configurations.sample.gate.champion_margin=2"], "champion_margin': maximum: got 2, want 1"),
        (["configurations.other.name=a"], "at '/configurations/other': missing property 'data'"),
        (["cluster.train.gpus=1"], "at '/cluster/train': additional properties 'gpus' not allowed"),
        (["registry.url=gs://a/b"], "at '/registry': additional properties 'url' not allowed"),
        (["serving.settings.port=80"], "at '/serving/settings': additional properties 'port' not allowed"),
        (["images.ops.digest=sha256:abc"], "at '/images/ops/digest': 'sha256:abc' does not match pattern"),
        (["kubeflow.host=ml-pipeline:8888"], "at '/kubeflow/host': 'ml-pipeline:8888' does not match pattern"),
        (["storage.existingClaim=shop.data"], "at '/storage/existingClaim': 'shop.data' does not match pattern"),
        ([f"storage.existingClaim={'c' * 64}"], "at '/storage/existingClaim': maxLength: got 64, want 63"),
        (["cluster.notify.secret=web.hook"], "at '/cluster/notify/secret': 'web.hook' does not match pattern"),
        (["serviceAccounts.runner.name=My_Account"], "runner/name': 'My_Account' does not match pattern"),
        (["schedules[0].cron=daily"], "at '/schedules/0/cron': 'daily' does not match pattern"),
        (["schedules[0].cron=* * * * * * *"], "at '/schedules/0/cron': '* * * * * * *' does not match pattern"),
        (["schedules[0].pipeline=train"], "at '/schedules/0/pipeline': value must be one of 'distill', 'monitor'"),
        (["schedules[0].catchUp=true"], "at '/schedules/0': additional properties 'catchUp' not allowed"),
    ],
)
def test_refused(settings: list[str], message: str) -> None:
    base = ["--namespace", "kubeflow", "--values", CHART / "ci" / "pipelines-only-values.yaml"]
    if not any("kubeflow.namespace" in setting for setting in settings):
        base += ["--set", "kubeflow.namespace="]
    assert message in _refusal(*base, *(part for setting in settings for part in ("--set", setting)))


def test_the_longest_release_has_an_owner_that_fits(tmp_path: Path) -> None:
    release, namespace = "r" * 53, "n" * 63  # what Helm and Kubernetes allow
    text = _run("template", release, CHART, *_scenario("pipelines-only"), "--namespace", namespace).stdout
    (file,) = (
        item["data"]["schedules.yaml"]
        for item in yaml.safe_load_all(text)
        if item and item["kind"] == "ConfigMap" and "schedules.yaml" in item["data"]
    )
    (tmp_path / "schedules.yaml").write_text(file)
    owner = spec.read(tmp_path / "schedules.yaml").owner
    assert owner == f"{namespace}.{release}"
    assert len(reconcile.marked(owner, "0" * 64)) <= kubeflow.TEXT_CHARACTERS


def test_two_schedules_of_one_name_are_refused() -> None:
    message = _refusal(*_scenario("pipelines-only"), "--set-json", f"schedules={PLANS}")
    assert 'two schedules are called "weekly": expected unique names' in message


@pytest.mark.parametrize("name", values.FILES)
def test_generated_files_are_fresh(name: str) -> None:
    assert (CHART / name).read_text(encoding="utf-8") == values.FILES[name](), "run `make chart`"


def test_the_schema_is_closed() -> None:
    schema = values.schema()
    jsonschema.Draft7Validator.check_schema(schema)
    open_ones = []
    for name, part in [("", schema), *schema["$defs"].items()]:
        if part.get("type") == "object" and part.get("additionalProperties") is not False:
            open_ones.append(name)
    assert not open_ones
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), schema)


def test_versions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])
