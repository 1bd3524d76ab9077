"""The `termination` pipeline, which `doctor --run` submits once for each way to end: is its pod started again?"""

from kfp import dsl

from components.probe_termination import probe_termination
from pipelines.resources import configure_task


@dsl.pipeline(name="termination", description="See whether a pod that ends in some way is started again.")
def termination(how: str, seconds: float):
    """`how` is exit, kill, or wait, which waits to be terminated, `seconds` at most."""
    ended = probe_termination(how=how, seconds=seconds)
    configure_task(ended, "preflight", effect=True).set_retry(1, backoff_duration="1s").set_display_name(
        "probe termination"
    )
