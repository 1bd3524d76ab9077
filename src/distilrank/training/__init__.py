"""The training loop, its losses and checkpoints, and its processes and nodes."""
