"""Commands from a checkpoint to variants."""
