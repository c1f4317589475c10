"""Results: cells on disk, metrics, intervals, comparison and selection; without torch."""
