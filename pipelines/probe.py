"""The `probe` pipeline, which `doctor --run` submits: what do the pods of this cluster get?"""

from kfp import dsl

from components.probe import probe_pod
from components.probe_artifact import probe_artifact
from components.probe_training import probe_training
from pipelines.resources import configure_task, secrets


@dsl.pipeline(name="probe", description="See what the pods of this cluster are given.")
def probe(token: str, volumes: list, data: dict, registry: dict):
    """`token` is what goes through the object store; `volumes` are the paths of `cluster.volumes`."""
    reported = probe_pod(
        schedule_time=dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER,
        token=token,
        volumes=volumes,
        secrets=secrets(),
        data=data,
        registry=registry,
    )
    configure_task(reported, "preflight", effect=True).set_display_name("probe")

    read = probe_artifact(written=reported.outputs["written"], token=token)
    configure_task(read, "preflight", effect=True).set_display_name("probe artifact")

    trained = probe_training()
    configure_task(trained, "label", effect=True).set_display_name("probe training")
