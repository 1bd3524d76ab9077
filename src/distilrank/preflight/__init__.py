"""Preflight: checks and pins everything that a run depends on, before any expensive work."""

from distilrank.preflight.stage import MonitorInputs, Resolved, cache_since, check, check_monitor

__all__ = ["MonitorInputs", "Resolved", "cache_since", "check", "check_monitor"]
