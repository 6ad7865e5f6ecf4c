"""What `experiments.kernel_vs_network` is made of."""
