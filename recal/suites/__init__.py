"""Declared benchmarks and the images of their cells."""
