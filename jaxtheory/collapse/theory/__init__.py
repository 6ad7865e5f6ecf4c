"""What collapse theory predicts: optima of models whose features are free.

Everything here is solved on the host in float64, whatever JAX's default precision is,
unless a docstring says otherwise. Nothing here is meant to be traced.
"""
