"""BN layers, branches, variants and the estimation of their statistics."""
