"""What `experiments.local_elasticity` is made of."""
