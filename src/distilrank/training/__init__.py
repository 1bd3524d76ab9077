"""Training: the loop, losses, checkpoints, and launch of processes and nodes."""
