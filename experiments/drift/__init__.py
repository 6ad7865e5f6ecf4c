"""What `experiments.label_noise` is made of."""
