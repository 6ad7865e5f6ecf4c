"""What `experiments.flatness_and_generalization` is made of."""
