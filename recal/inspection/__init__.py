"""Inspection of a checkpoint: findings, distances between branches, scores on images."""
