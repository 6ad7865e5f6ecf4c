"""Generalization bounds that say what they assume."""
