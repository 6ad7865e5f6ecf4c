"""Neural collapse: class statistics and the layer-wise law of separation."""
