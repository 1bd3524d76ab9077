"""Drift of search traffic: the stage `drift` of a run, and the `monitor` stages between runs."""
