"""Evaluation: targets, how they run, and the cells that come of it."""
