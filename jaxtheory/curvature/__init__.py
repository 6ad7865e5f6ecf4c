"""Curvature: operators over the whole data set, sharpness and its thresholds."""

from jaxtheory.batching import select_leaves as select_leaves
from jaxtheory.curvature import flatness as flatness
from jaxtheory.curvature import landscape as landscape
from jaxtheory.curvature._fisher import empirical_fisher as empirical_fisher
from jaxtheory.curvature._fisher import fisher as fisher
from jaxtheory.curvature._gradient_covariance import (
    gradient_covariance as gradient_covariance,
)
from jaxtheory.curvature._monitor import (
    SharpnessOverThreshold as SharpnessOverThreshold,
)
from jaxtheory.curvature._monitor import (
    sharpness_over_threshold as sharpness_over_threshold,
)
from jaxtheory.curvature._operators import ggn as ggn
from jaxtheory.curvature._operators import hessian as hessian
from jaxtheory.curvature._operators import residual_hessian as residual_hessian
from jaxtheory.curvature._preconditioner import preconditioned as preconditioned
from jaxtheory.curvature._preconditioner import preconditioner as preconditioner
from jaxtheory.curvature._sharpness import batch_sharpness as batch_sharpness
from jaxtheory.curvature._sharpness import sharpness as sharpness
from jaxtheory.curvature._threshold import StabilityThreshold as StabilityThreshold
from jaxtheory.curvature._threshold import stability_threshold as stability_threshold
