"""Plots, templates and scripts of the pages."""
