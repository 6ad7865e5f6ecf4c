"""Training dynamics: train and record, store, noise, dimension of the path."""
