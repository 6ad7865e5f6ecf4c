"""Data sets and tasks with known ground truth."""
