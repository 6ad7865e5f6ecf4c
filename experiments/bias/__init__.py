"""What `experiments.implicit_bias` is made of."""
