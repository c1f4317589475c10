"""Networks by name: recal's own, timm's and torchvision's."""

from recal.architectures.naming import create_network

__all__ = ["create_network"]
