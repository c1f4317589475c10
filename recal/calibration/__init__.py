"""From images to BatchNorm statistics."""
