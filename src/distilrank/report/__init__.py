"""The `report` stage: all results of a run as one page."""

from distilrank.report.page import render as render
