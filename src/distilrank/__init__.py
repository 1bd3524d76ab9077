"""Distil an LLM's sense of product relevance into a small, fast ranker."""

__version__ = "0.1.0"
