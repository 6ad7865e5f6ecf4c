"""Curvature: operators over the whole data set, sharpness and its thresholds."""
