"""From a file of weights to weights and BatchNorm branches, without running code from it."""
