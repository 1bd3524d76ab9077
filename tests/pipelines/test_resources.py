"""The contract of what is compiled for a cluster: pods ask for what the configuration says, and hold nothing secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl

from distilrank import __version__, config, registry
from distilrank.core.errors import InputError
from pipelines import compiling, resources
from pipelines.distill import distill
from tests import kfp_driver, promotions
from tests.promotions import LINEAGE

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
DIGEST = "@sha256:" + "a" * 64
TASKS = {
    "teacher": "train-teacher",
    "label": "label-shard",
    "student": "distil-student",
    "evaluate": "evaluate-student",
    "score": "score-newest",
}

CLUSTER: dict[str, Any] = {
    "images": {"ops": f"shop.example/ops{DIGEST}", "train": "shop.example:5000/train:1.2.3"},
    "ops": {"memory": "3Gi"},
    "train": {
        "gpu": 1,
        "node_selector": {"accelerator": "l4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "timeout_minutes": 90,
        "shared_memory": "2Gi",
    },
    "stages": {"evaluate": {"gpu": 0, "memory": "20Gi"}, "label": {"retries": 5, "backoff_seconds": 10}},
    "volumes": [{"claim": "distilrank", "path": "/distilrank", "sub_path": "shop"}],
    "secrets": [{"name": "hub", "env": {"token": "HF_TOKEN"}}, {"name": "trust", "path": "/etc/trust"}],
    "env": {"HF_HOME": "/distilrank/hf"},
    "labels": {"team": "search"},
    "annotations": {"reason": "weekly"},
    "pull_secrets": ["regcred"],
    "run_as_user": 4711,
    "notify": {"secret": "chat", "key": "hook"},
}


def settings(**cluster: Any) -> config.Config:
    values = {"data": {"source": "demo_shop"}, "registry": {"uri": "gs://shop/registry"}, "cluster": cluster}
    return config.parse(values, "test")


class Compiled:
    """A compiled pipeline, by parts."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        documents = list(yaml.safe_load_all(self.text))
        self.spec = documents[0]
        self.executors = self.spec["deploymentSpec"]["executors"]
        platform = documents[1]["platforms"]["kubernetes"] if len(documents) > 1 else {}
        self.pods = platform.get("deploymentSpec", {}).get("executors", {})
        groups = [self.spec["root"], *self.spec["components"].values()]
        self.tasks = {name: task for group in groups for name, task in group.get("dag", {}).get("tasks", {}).items()}

    def executor(self, task: str) -> dict[str, Any]:
        return self.executors[f"exec-{task}"]["container"]

    def pod(self, task: str) -> dict[str, Any]:
        return self.pods[f"exec-{task}"]


def compiled(folder: Path, name: str, configuration: config.Config, scheduled: bool = False) -> Compiled:
    compiling.write(name, configuration, folder / f"{name}.yaml", scheduled=scheduled)
    return Compiled(folder / f"{name}.yaml")


@pytest.fixture(scope="module", params=["distill", "monitor"])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compiled(tmp_path_factory.mktemp("full"), request.param, settings(**CLUSTER))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_contract_holds_for_every_configuration(tmp_path: Path, name: str) -> None:
    for pipeline in ("distill", "monitor"):
        package = compiled(tmp_path, pipeline, config.load(ROOT / "configs" / name))
        assert len(package.text) <= 150_000
        assert set(package.pods) == set(package.executors)
        for label, executor in package.executors.items():
            container = executor["container"]
            command = " ".join(container["command"] + container.get("args", []))
            assert "pip install" not in command and "packages_to_install" not in command, label
            assert container["image"] in (f"distilrank/ops:{__version__}", f"distilrank/train:{__version__}"), label
            asked = container["resources"]
            assert asked["resourceCpuRequest"] == asked["resourceCpuLimit"], label
            assert asked["resourceMemoryRequest"] == asked["resourceMemoryLimit"], label
            assert package.pods[label]["securityContext"]["runAsNonRoot"] is True, label


def test_the_same_configuration_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from pipelines import compiling\n"
        "from distilrank import config\n"
        "given = config.load(pathlib.Path('configs/demo.yaml'))\n"
        "compiling.write('monitor', given, pathlib.Path(sys.argv[1]))\n"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, str(tmp_path / seed / "monitor.yaml")]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert (tmp_path / "1" / "monitor.yaml").read_bytes() == (tmp_path / "2" / "monitor.yaml").read_bytes()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["monitor.yaml"]


def test_every_pod_has_what_all_get(full: Compiled) -> None:
    assert set(full.pods) == set(full.executors)
    for label, pod in full.pods.items():
        assert (
            pod["pvcMount"][0] | {"mountPath": "/distilrank", "constant": "distilrank", "subPath": "shop"}
            == (pod["pvcMount"][0])
        )
        assert pod["imagePullSecret"][0]["secretName"] == "regcred"
        assert pod["podMetadata"] == {"labels": {"team": "search"}, "annotations": {"reason": "weekly"}}
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": "4711"}
        assert pod["secretAsEnv"][0]["keyToEnv"] == [{"envVar": "HF_TOKEN", "secretKey": "token"}]
        assert "/etc/trust" in {volume["mountPath"] for volume in pod["secretAsVolume"]}
        assert all(secret["optional"] for secret in pod["secretAsEnv"] + pod["secretAsVolume"]), "preflight tells"
        environment = full.executors[label]["container"]["env"]
        assert environment == [{"name": "HF_HOME", "value": "/distilrank/hf"}]


def test_stages_add_their_own_settings(full: Compiled) -> None:
    assert full.executor("prepare-data")["image"] == CLUSTER["images"]["ops"]
    assert full.executor("train-teacher")["image"] == CLUSTER["images"]["train"]
    teacher = full.executor("train-teacher")["resources"]
    assert teacher["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert teacher["accelerator"]["resourceCount"] == "1"
    assert teacher["resourceMemoryLimit"] == "16Gi", "what is not set keeps its default"
    assert full.executor("prepare-data")["resources"]["resourceMemoryLimit"] == "3Gi"
    evaluate = full.executor("evaluate-student")["resources"]
    assert "accelerator" not in evaluate and evaluate["resourceMemoryLimit"] == "20Gi"
    pod = full.pod("train-teacher")
    assert pod["nodeSelector"] == {"labels": {"accelerator": "l4"}}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["activeDeadlineSeconds"] == "5400"
    assert pod["emptyDirMounts"] == [
        {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "2Gi"}
    ]
    assert not {"nodeSelector", "tolerations", "emptyDirMounts"} & set(full.pod("prepare-data"))
    assert full.tasks["label-shard"]["retryPolicy"] == {
        "maxRetryCount": 5,
        "backoffDuration": "10s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "2592000s",  # of all attempts together: an hour would end long stages
    }
    assert full.tasks["train-teacher"]["retryPolicy"]["maxRetryCount"] == 2


def test_the_outcome_is_reported_whatever_it_is(full: Compiled) -> None:
    root = full.spec["root"]["dag"]["tasks"]
    task = root["report-outcome"]
    assert task["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"} and not task["cachingOptions"]
    assert set(root) == {"report-outcome", *task["dependentTasks"]}, "all else is within"
    (volume,) = (
        secret
        for secret in full.pod("report-outcome")["secretAsVolume"]
        if secret["secretName"] == CLUSTER["notify"]["secret"]
    )
    assert volume["mountPath"] == "/var/run/distilrank/notify"
    elsewhere = [label for label, pod in full.pods.items() if "chat" in json.dumps(pod)]
    assert elsewhere == ["exec-report-outcome"], "only who posts gets the URL"


def test_preflight_knows_which_secrets_to_expect(full: Compiled) -> None:
    for task in ("check-inputs", "check-champion"):
        if task in full.tasks:
            secrets = full.tasks[task]["inputs"]["parameters"]["secrets"]["runtimeValue"]["constant"]
            assert secrets == {"hub": ["HF_TOKEN"], "trust": ["/etc/trust"]}


def test_a_schedule_takes_time_and_name_from_kubeflow(tmp_path: Path) -> None:
    package = compiled(tmp_path, "monitor", settings(), scheduled=True)
    values = {
        (task, name): value["runtimeValue"]["constant"]
        for task, spec in package.tasks.items()
        for name, value in spec.get("inputs", {}).get("parameters", {}).items()
        if "runtimeValue" in value
    }
    for task in ("check-champion", "check-inputs"):
        assert values[task, "schedule_time"] == "{{$.pipeline_job_schedule_time_utc}}"
    for task in ("check-champion", "check-inputs", *NAMED):
        assert task == "report-outcome" or values[task, "name"] == "{{$.pipeline_job_resource_name}}"
    plain = compiled(tmp_path, "distill", settings())
    assert "{{$.pipeline_job" not in plain.text


NAMED = ("watch-champion", "promote-student", "render-report", "push-drift-snapshot", "report-outcome")
"""The tasks after preflight that need the run's name."""


@pytest.mark.parametrize("pipeline", ["distill", "monitor"])
def test_no_placeholder_of_a_schedule_is_empty_in_a_recurring_run(tmp_path: Path, pipeline: str) -> None:
    package = compiled(tmp_path, pipeline, settings(**CLUSTER), scheduled=True)
    used = set(re.findall(r"\{\{\$\.pipeline_\w+\}\}", package.text))
    assert used == {"{{$.pipeline_job_resource_name}}", "{{$.pipeline_job_schedule_time_utc}}"}
    assert not [placeholder for placeholder in used if not kfp_driver.RECURRING[placeholder]]


@pytest.mark.parametrize("pipeline", ["distill", "monitor"])
def test_a_recurring_run_has_its_name_and_time_wherever_they_are_needed(tmp_path: Path, pipeline: str) -> None:
    package = compiled(tmp_path, pipeline, settings(**CLUSTER), scheduled=True)
    tasks = kfp_driver.parameters(package.spec, kfp_driver.RECURRING)
    named = {task: values["name"] for task, values in tasks.items() if "name" in values}
    preflights = {"check-inputs"} | ({"check-champion"} if pipeline == "monitor" else set())
    after = {task for task in NAMED if pipeline == "monitor" or task != "watch-champion"}
    assert named == dict.fromkeys(preflights | after, "rec-1-3254976706")
    times = {task: values["schedule_time"] for task, values in tasks.items() if "schedule_time" in values}
    assert times == dict.fromkeys(preflights, "2026-11-30T20:10:00Z")
    # What promotion insists on is there: the name and the images from the wiring, the digests from preflight.
    promote = tasks["promote-student"]
    assert set(LINEAGE) == {"name", "data", "code", "images"} and all(promote["images"].values())
    assert all(isinstance(promote[key], kfp_driver.Output) for key in ("data_digest", "code_digest"))
    # No other input of a stage is an empty text or a placeholder that stays.
    empty = {
        (task, key): value
        for task, values in tasks.items()
        for key, value in values.items()
        if value == "" or value is None or (isinstance(value, str) and "{{" in value)
    }
    assert set(empty) == {("report-outcome", "status")}, "which the driver makes at the end"


def test_a_single_run_is_named_by_its_parameter(tmp_path: Path) -> None:
    package = compiled(tmp_path, "monitor", settings(**CLUSTER))
    tasks = kfp_driver.parameters(package.spec, kfp_driver.ONE_OFF, {"name": "by-hand"})
    named = {task: values["name"] for task, values in tasks.items() if "name" in values}
    assert named == dict.fromkeys(("check-champion", "check-inputs", *NAMED), "by-hand")
    assert tasks["check-inputs"]["schedule_time"] == tasks["check-champion"]["schedule_time"] == ""  # now


def test_a_recurring_run_promotes_under_its_name(tmp_path: Path) -> None:
    package = compiled(tmp_path, "distill", settings(), scheduled=True)
    parameters = kfp_driver.parameters(package.spec, kfp_driver.RECURRING)["promote-student"]
    where = config.Registry(uri=str(tmp_path / "registry"))
    lineage = LINEAGE | {"name": parameters["name"], "images": parameters["images"]}
    version = promotions.run(where, promotions.stages(tmp_path / "run"), lineage=lineage)
    manifest = registry.connect(where).manifest(version)
    assert manifest["lineage"]["name"] == "rec-1-3254976706"
    assert manifest["lineage"]["images"] == resources.images()


def test_locally_only_the_images_and_the_message_count(tmp_path: Path) -> None:
    built = compiling.build("distill", settings(**CLUSTER), cluster=False)
    spec = built.pipeline_spec
    executors = spec.deployment_spec["executors"]
    assert executors["exec-train-teacher"]["container"]["image"] == CLUSTER["images"]["train"]
    assert "resources" not in executors["exec-train-teacher"]["container"]
    tasks = {name: task for component in spec.components.values() for name, task in component.dag.tasks.items()}
    assert not any(task.HasField("retry_policy") for task in tasks.values())
    assert "report-outcome" in spec.root.dag.tasks and not built.platform_spec.platforms


def test_the_plain_pipelines_stay_as_they_were(full: Compiled) -> None:
    assert "report-outcome" not in distill.pipeline_spec.root.dag.tasks
    assert resources.images() == {"ops": f"distilrank/ops:{__version__}", "train": f"distilrank/train:{__version__}"}


@pytest.mark.parametrize(
    ("quantity", "expected"), [("20Gi", 20 * 2**30), ("512Mi", 2**29), ("5G", 5 * 10**9), ("64Ki", 2**16), ("7", 7)]
)
def test_pods_without_a_gpu_ask_for_disk(tmp_path: Path, quantity: str, expected: int) -> None:
    package = compiled(tmp_path, "distill", settings(stages={"label": {"ephemeral_storage": quantity}}))
    # What the driver of kubeflow/pipelines 2.17.0 makes a limit of the container: {resourceType: resourceCount}.
    accelerator = package.executor("label-shard")["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("ephemeral-storage", str(expected))
    assert "accelerator" not in package.executor("train-teacher")["resources"]


def test_disk_beside_a_gpu_is_refused(tmp_path: Path) -> None:
    configuration = settings(train={"gpu": 1}, stages={"label": {"ephemeral_storage": "20Gi"}})
    with pytest.raises(InputError, match=r"the pods of label ask for a GPU and for ephemeral_storage \(20Gi\), but"):
        compiled(tmp_path, "distill", configuration)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"images": {"ops": "shop/ops"}}, "no tag and no digest, expected a tag that is never pushed again"),
        ({"images": {"ops": "shop/ops:latest"}}, "the tag 'latest' moves"),
        ({"images": {"train": "shop.example:5000/train"}}, "no tag and no digest"),
        ({"images": {"train": "shop/train:1@sha256:12"}}, "cluster.images.train"),
        ({"stages": {"teach": {"gpu": 1}}}, "cluster.stages.teach"),
        ({"train": {"gpus": 1}}, "unknown key 'cluster.train.gpus'; did you mean 'gpu'?"),
        ({"train": {"memory": "16 GB"}}, "cluster.train.memory"),
        ({"train": {"tolerations": [{"operator": "Exists", "value": "x"}]}}, "expected none with operator Exists"),
        ({"secrets": [{"name": "hub"}]}, "secret hub: neither env nor path is set"),
        ({"secrets": [{"name": "hub", "env": {"token": "HF-TOKEN"}}]}, "cluster.secrets.0.env"),
        (
            {"volumes": [{"claim": "a", "path": "/x"}], "secrets": [{"name": "b", "path": "/x"}]},
            "/x is mounted twice",
        ),
        ({"images": {"ops": "shop/ops:1:2"}}, "not an image name, expected [HOST[:PORT]/]NAME:TAG"),
        ({"images": {"ops": "shop/Ops:1"}}, "not an image name"),
        ({"labels": {"my team": "search"}}, "cluster.labels.my team"),
        ({"labels": {"team": "search & find"}}, "cluster.labels.team"),
        ({"train": {"memory": "500m"}}, "cluster.train.memory"),
        ({"train": {"gpu_type": "NVIDIA T4"}}, "cluster.train.gpu_type"),
        ({"train": {"backoff_factor": 1.5}}, "cluster.train.backoff_factor"),
        ({"train": {"tolerations": [{"key": "spot", "seconds": 9}]}}, "expected them with effect NoExecute alone"),
        ({"volumes": [{"claim": "a", "path": "/x", "sub_path": "../b"}]}, "cluster.volumes.0.sub_path"),
        ({"volumes": [{"claim": "a", "path": "/dev/shm"}], "stages": {"label": {"shared_memory": "1Gi"}}}, "/dev/shm"),
        (
            {"secrets": [{"name": "a", "path": "/var/run/distilrank/notify"}], "notify": {"secret": "chat"}},
            "/var/run/distilrank/notify is mounted twice",
        ),
        (
            {"secrets": [{"name": "hub", "env": {"token": "HF_TOKEN"}}, {"name": "hub", "path": "/x"}]},
            "secret hub is listed twice",
        ),
        (
            {"env": {"HF_TOKEN": "x"}, "secrets": [{"name": "hub", "env": {"token": "HF_TOKEN"}}]},
            "variable HF_TOKEN is set twice",
        ),
        ({"pipeline_root": "/artifacts"}, "cluster.pipeline_root"),
        ({"secrets": [{"name": "trust.me", "path": "/x"}]}, "cluster.secrets.0: 'trust.me' has a dot, expected a name"),
        ({"secrets": [{"name": "t" * 64, "path": "/x"}]}, "has 64 characters, expected a name without dots of 63"),
        ({"secrets": [{"name": "a..b", "env": {"token": "TOKEN"}}]}, "cluster.secrets.0.name"),
        ({"secrets": [{"name": "minio-scratch", "path": "/x"}]}, "is a volume that Kubeflow adds to every pod"),
        ({"volumes": [{"claim": "shop.data", "path": "/x"}]}, "cluster.volumes.0.claim: 'shop.data' has a dot"),
        ({"volumes": [{"claim": "c" * 64, "path": "/x"}]}, "has 64 characters"),
        ({"volumes": [{"claim": "kfp-launcher", "path": "/x"}]}, "is a volume that Kubeflow adds to every pod"),
        ({"notify": {"secret": "web.hook"}}, "cluster.notify.secret: 'web.hook' has a dot"),
        (
            {"volumes": [{"claim": "shop", "path": "/x"}], "secrets": [{"name": "shop", "path": "/y"}]},
            "shop is a claim in volumes and a secret that is mounted",
        ),
        (
            {"volumes": [{"claim": "chat", "path": "/x"}], "notify": {"secret": "chat"}},
            "chat is a claim in volumes and a secret that is mounted",
        ),
        (
            {"volumes": [{"claim": "shm", "path": "/x"}], "train": {"shared_memory": "1Gi"}},
            "a claim or secret is called 'shm'",
        ),
        ({"volumes": [{"claim": "a", "path": "/minio"}]}, "/minio is mounted over /minio, which is Kubeflow's"),
        ({"volumes": [{"claim": "a", "path": "/gcs/shop"}]}, "/gcs/shop is mounted over /gcs"),
        ({"volumes": [{"claim": "a", "path": "/tmp"}]}, "/tmp is mounted over /tmp/kfp"),
        ({"secrets": [{"name": "a", "path": "/var/run/argo"}]}, "/var/run/argo is mounted over /var/run/argo"),
        ({"volumes": [{"claim": "a", "path": "/x/../y"}]}, "cluster.volumes.0.path: '/x/../y' has a part '.' or '..'"),
        ({"secrets": [{"name": "a", "path": "/x/./y"}]}, "cluster.secrets.0.path: '/x/./y' has a part '.' or '..'"),
        (
            {"secrets": [{"name": "a", "path": "/x"}], "volumes": [{"claim": "b", "path": "/x/y"}]},
            "/x/y is mounted within /x, the files of secret a",
        ),
        ({"env": {"KFP_POD_NAME": "x"}}, "variable KFP_POD_NAME is set, which is Kubeflow's or Argo's own"),
        ({"secrets": [{"name": "a", "env": {"x": "ARGO_TEMPLATE"}}]}, "variable ARGO_TEMPLATE is set"),
        ({"labels": {"workflows.argoproj.io/workflow": "x"}}, "by which Argo knows its pods"),
        ({"labels": {f"{'a' * 254}/x": "y"}}, "has 254 characters, expected at most 253"),
        ({"annotations": {"note": "x" * 140_000}}, "annotations have 140004 bytes, expected at most 131072"),
        ({"train": {"node_selector": {"pool/": "x"}}}, "cluster.train.node_selector.pool/"),
        ({"train": {"tolerations": [{"key": "my key"}]}}, "cluster.train.tolerations.0.key"),
        ({"train": {"tolerations": [{"key": "a", "value": "b c"}]}}, "cluster.train.tolerations.0.value"),
        ({"train": {"cpu": "0.0001"}}, "cluster.train.cpu"),
        ({"train": {"retries": 2**31}}, "cluster.train.retries"),
        ({"train": {"timeout_minutes": 35_791_395}}, "cluster.train.timeout_minutes"),
        ({"train": {"backoff_seconds": 2**31}}, "cluster.train.backoff_seconds"),
        ({"train": {"retry_hours": 3_000_000}}, "cluster.train.retry_hours"),
        ({"run_as_user": 2**31}, "cluster.run_as_user"),
        ({"service_account": "a" * 254}, "cluster.service_account"),
        ({"notify": {"webhook": "https://x", "secret": "y"}}, "both webhook and secret are set"),
        ({"notify": {"webhook": "x"}}, "cluster.notify.webhook"),
    ],
)
def test_what_no_cluster_could_run_is_refused(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        settings(**cluster)
    assert message in str(error.value)


def test_names_that_kubernetes_takes_are_taken() -> None:
    configuration = settings(
        volumes=[
            {"claim": "shop", "path": "/shop/a", "sub_path": "a"},
            {"claim": "shop", "path": "/shop/b", "sub_path": "b"},  # one volume, mounted twice
            {"claim": "c" * 63, "path": "/tmp/cache"},
        ],
        secrets=[
            {"name": "hub.example.com", "env": {"token": "HF_TOKEN"}},  # no volume is called by it
            {"name": "trust", "path": "/shop/trust"},
        ],
        pull_secrets=["registry.example.com"],
        labels={f"{'a' * 63}.example.com/{'n' * 63}": "v" * 63},
    )
    assert len(configuration.cluster.volumes) == 3


def test_cuda_without_a_gpu_in_the_pod_is_refused(tmp_path: Path) -> None:
    values = {"data": {"source": "demo_shop"}, "compute": {"device": "cuda"}}
    with pytest.raises(InputError, match=r"the pods of teacher ask for no GPU: expected cluster\.train\.gpu"):
        compiling.write("distill", config.parse(values, "test"), tmp_path / "x.yaml")
    values["cluster"] = {"stages": {"teacher": {"gpu": 1}, "label": {"gpu": 1}, "student": {"gpu": 2}}}
    assert compiled(tmp_path, "distill", config.parse(values, "test")).executor("distil-student")["resources"]


def test_kfp_still_names_the_setter_that_a_pipeline_lacks() -> None:
    @dsl.component
    def work():
        pass

    @dsl.pipeline(name="inner")
    def inner():
        work()

    def outer():
        inner().set_cpu_limit("1")

    with pytest.raises(ValueError, match=r"^set_cpu_limit can only be used on single-step components"):
        dsl.pipeline(name="outer")(outer)


def test_compiling_takes_no_heavy_library_and_little_time() -> None:
    program = (
        "import sys, tempfile, pathlib\n"
        "from pipelines import compiling\n"
        "from distilrank import config\n"
        "given = config.load(pathlib.Path('configs/paper.yaml'))\n"
        "compiling.write('monitor', given, pathlib.Path(tempfile.mkdtemp()) / 'monitor.yaml')\n"
        "print(sorted({'torch', 'transformers', 'evidently', 'pandas', 'pyarrow'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
