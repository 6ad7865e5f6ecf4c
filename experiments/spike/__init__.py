"""What `experiments.one_step_spike` is made of."""
