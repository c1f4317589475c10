"""Variants: one choice of affine and one of statistics; their files, networks and mixes."""
