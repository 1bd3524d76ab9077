"""The `probe` pipeline, which `doctor --run` submits: report what the pods of a cluster are given."""

from kfp import dsl

from components.probe import probe_pod
from components.probe_artifact import probe_artifact
from components.probe_training import probe_training
from pipelines.resources import configure_task, secrets


@dsl.pipeline(name="probe", description="Report what the pods of this cluster are given.")
def probe(token: str, volumes: list, data: dict, registry: dict):
    """Write `token` to the object store and read it back; `volumes` are the mount paths of `cluster.volumes`."""
    reported = probe_pod(
        schedule_time=dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER,
        token=token,
        volumes=volumes,
        secrets=secrets(),
        data=data,
        registry=registry,
    )
    configure_task(reported, "preflight", cacheable=False).set_display_name("probe")

    read = probe_artifact(written=reported.outputs["written"], token=token)
    configure_task(read, "preflight", cacheable=False).set_display_name("probe artifact")

    trained = probe_training()
    configure_task(trained, "label", cacheable=False).set_display_name("probe training")
