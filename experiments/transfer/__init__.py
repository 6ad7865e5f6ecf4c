"""What `experiments.transfer_collapse` is made of."""
