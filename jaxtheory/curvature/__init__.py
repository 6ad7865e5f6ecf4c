"""Curvature: operators over the whole data set, sharpness and its thresholds."""

from jaxtheory.curvature._operators import ggn as ggn
from jaxtheory.curvature._operators import hessian as hessian
from jaxtheory.curvature._sharpness import adam_preconditioner as adam_preconditioner
from jaxtheory.curvature._sharpness import batch_sharpness as batch_sharpness
from jaxtheory.curvature._sharpness import preconditioned as preconditioned
from jaxtheory.curvature._sharpness import sharpness as sharpness
from jaxtheory.curvature._threshold import StabilityThreshold as StabilityThreshold
from jaxtheory.curvature._threshold import stability_threshold as stability_threshold
