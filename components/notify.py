from kfp.dsl import PipelineTaskFinalStatus

from components.stage import ops_stage


@ops_stage
def report_outcome(status: PipelineTaskFinalStatus, name: str, config: dict, registry: dict):
    """Notify the configured recipients of how the run ended."""
    from distilrank import notify as stage
    from distilrank.config import Notify, Registry

    stage.notify(
        Notify(**config),
        Registry(**registry),
        name=name,
        run=status.pipeline_job_resource_name,
        state=status.state,
        error=status.error_message,
    )
