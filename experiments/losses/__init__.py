"""What `experiments.better_losses` is made of."""
