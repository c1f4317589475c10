"""Images: where they come from, how policies augment them, how batches of them are made."""
