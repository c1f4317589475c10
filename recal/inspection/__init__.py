"""What is wrong with a checkpoint, how far apart its branches are, how well each classifies."""
