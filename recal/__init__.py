"""recal: pick, mix and recalibrate the BatchNorm branches of a trained network."""

__version__ = "0.1.0"
