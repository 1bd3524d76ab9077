from components.stage import ops_stage


@ops_stage
def probe_termination(how: str, seconds: float):
    """Exit with an error, kill the process, or wait for the pod to be terminated."""
    from distilrank import probe as stage

    stage.end(how, seconds)
