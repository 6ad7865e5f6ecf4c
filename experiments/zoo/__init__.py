"""What `experiments.generalization_bounds` is made of."""
