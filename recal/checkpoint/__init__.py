"""Reading checkpoints and recognising the BN branches that they hold."""
