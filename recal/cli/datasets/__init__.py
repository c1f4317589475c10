"""Commands about images and augmentations."""
