from kfp.dsl import Artifact, Output

from components.stage import ops_stage


@ops_stage
def probe_pod(
    schedule_time: str,
    token: str,
    volumes: list,
    secrets: dict,
    data: dict,
    registry: dict,
    written: Output[Artifact],
):
    """Report volumes, Secrets, user and clock of a pod, and write an artifact."""
    from pathlib import Path

    from distilrank import probe as stage

    stage.report_pod(
        dict(data=data, registry=registry),
        schedule_time=schedule_time,
        volumes=volumes,
        secrets=secrets,
        token=token,
        output=Path(written.path),
    )
