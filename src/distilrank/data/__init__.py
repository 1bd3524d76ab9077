"""The stage `prepare`, and what it reads: sources, logs, the split, candidates, privacy, the profile."""
