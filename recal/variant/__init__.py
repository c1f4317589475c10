"""Variants: one choice of affine and one of statistics, mixed, converted and kept in files."""
