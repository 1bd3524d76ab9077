"""The `termination` pipeline, which `doctor --run` submits once for each way in which a pod can terminate."""

from kfp import dsl

from components.probe_termination import probe_termination
from pipelines.resources import configure_task


@dsl.pipeline(name="termination", description="See whether Kubernetes restarts a pod that terminates in a given way.")
def termination(how: str, seconds: float):
    """Terminate as `how` says: exit (status 1), kill (SIGKILL), or wait (until terminated, `seconds` at most)."""
    terminated = probe_termination(how=how, seconds=seconds)
    configure_task(terminated, "preflight", cacheable=False).set_retry(1, backoff_duration="1s").set_display_name(
        "probe termination"
    )
