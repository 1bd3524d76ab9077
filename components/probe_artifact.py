from kfp.dsl import Artifact, Input

from components.stage import ops_stage


@ops_stage
def probe_artifact(written: Input[Artifact], token: str):
    """Report whether an artifact can be read back from the object store."""
    from pathlib import Path

    from distilrank import probe as stage

    stage.read_artifact(Path(written.path), token)
