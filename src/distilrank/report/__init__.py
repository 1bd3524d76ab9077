"""The report stage: everything that a run found, as one page."""

from distilrank.report.page import render as render
