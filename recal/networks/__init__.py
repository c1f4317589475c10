"""From a name to a module, and from weights and a variant to a plain-BN module."""
