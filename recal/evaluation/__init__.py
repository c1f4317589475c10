"""Suites, metrics, runs: what is measured and how it is kept."""
