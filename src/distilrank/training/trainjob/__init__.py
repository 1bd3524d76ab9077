"""Training over several nodes: create a TrainJob of Kubeflow Trainer, wait for it, and delete it at its end.

The pod that waits may be gone at any moment: Kubeflow's launcher ends half a second after SIGTERM and takes its
container along. So the TrainJob's life does not depend on that pod, and is finite nevertheless. Its nodes watch the
heartbeat of the waiting pod, a file on the volume that they share, and end themselves when it has been silent for too
long. Its owner is the workflow of the run, with which Kubernetes deletes it. And it has a deadline.

Written against `trainer.kubeflow.org/v1alpha1` of Kubeflow Trainer 2.2 and newer. docs/several-nodes.md says what a
cluster needs for it.
"""
