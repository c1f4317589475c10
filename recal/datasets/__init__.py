"""The published data sets: catalogue, download, regeneration of corrupted images."""
