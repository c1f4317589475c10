"""Declared augmentations."""
