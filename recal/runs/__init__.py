"""A run on disk, and every number that is computed from it."""
