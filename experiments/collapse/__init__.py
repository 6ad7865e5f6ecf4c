"""What `neural_collapse`, `minority_collapse` and `multilabel_collapse` are made of."""
