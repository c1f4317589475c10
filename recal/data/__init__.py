"""From files to uint8 images and batches."""
