from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.stage import ops_stage


@ops_stage
def decide(
    evaluation: Input[Artifact],
    drift: Input[Artifact],
    student: Input[Model],
    judgements: Input[Dataset],
    champion: str,
    anchor: str,
    newest_end: str,
    config: dict,
    registry: dict,
    verdict: Output[Artifact],
) -> bool:
    """Hold the student against the policy; return whether it may be promoted."""
    from pathlib import Path

    from distilrank.promotion import gate as stage
    from distilrank.config import Gate, Registry
    from distilrank.core.run_folders import RunFolders

    folders = RunFolders(
        evaluation=Path(evaluation.path),
        drift=Path(drift.path),
        student=Path(student.path),
        judgements=Path(judgements.path),
    )
    return stage.gate(
        Gate(**config),
        Registry(**registry),
        folders,
        champion=champion,
        anchor=anchor,
        newest_end=newest_end,
        output=Path(verdict.path),
    )
