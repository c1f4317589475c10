"""Adversarial images: declared attacks, and the steps that compute them."""
