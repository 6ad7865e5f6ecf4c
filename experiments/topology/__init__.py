"""What `experiments.topological_complexity` is made of."""
