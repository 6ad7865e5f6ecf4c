"""Flax models whose every layer can be read."""
