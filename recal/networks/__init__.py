"""Architectures: from a name to a network with fresh weights, and what preprocessing it needs."""
