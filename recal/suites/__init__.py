"""Suites: declared benchmarks, and the images of their cells wherever they are kept."""
