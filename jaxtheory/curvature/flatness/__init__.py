"""Flatness measures: functions of a model, its loss, parameters and data.

All are called as ``measure(apply_fn, loss_fn, params, x, y, *, ...)``, with ``key=``
where they are random, and are pure: they can be jitted, mapped over a population of
parameters, and recorded during training. `all_measures` evaluates a table of them.
Perturbations are added in the precision of the parameters: measure in float32, as half
precision rounds small ones away. The table's rows are lpf, lpf_rise,
epsilon_sharpness, pac_bayes, fisher_rao, shannon_entropy, local_entropy, sharpness,
hessian_trace, hessian_frobenius_norm, effective_dimension, sam_sharpness,
sam_sharpness_ascended, asam_sharpness, asam_sharpness_ascended, m_sharpness,
keskar_sharpness, relative_flatness, batch_sharpness and noise_alignment.
"""

from jaxtheory.curvature._sharpness import batch_sharpness as batch_sharpness
from jaxtheory.curvature._sharpness import sharpness as sharpness
from jaxtheory.curvature.flatness._alignment import NoiseAlignment as NoiseAlignment
from jaxtheory.curvature.flatness._alignment import noise_alignment as noise_alignment
from jaxtheory.curvature.flatness._ascent import asam_sharpness as asam_sharpness
from jaxtheory.curvature.flatness._ascent import keskar_sharpness as keskar_sharpness
from jaxtheory.curvature.flatness._ascent import m_sharpness as m_sharpness
from jaxtheory.curvature.flatness._ascent import sam_sharpness as sam_sharpness
from jaxtheory.curvature.flatness._crossing import EpsilonSharpness as EpsilonSharpness
from jaxtheory.curvature.flatness._crossing import PacBayes as PacBayes
from jaxtheory.curvature.flatness._crossing import (
    epsilon_sharpness as epsilon_sharpness,
)
from jaxtheory.curvature.flatness._crossing import pac_bayes as pac_bayes
from jaxtheory.curvature.flatness._local_entropy import LocalEntropy as LocalEntropy
from jaxtheory.curvature.flatness._local_entropy import local_entropy as local_entropy
from jaxtheory.curvature.flatness._quadratic import (
    effective_dimension as effective_dimension,
)
from jaxtheory.curvature.flatness._quadratic import fisher_rao as fisher_rao
from jaxtheory.curvature.flatness._quadratic import (
    hessian_frobenius_norm as hessian_frobenius_norm,
)
from jaxtheory.curvature.flatness._quadratic import hessian_trace as hessian_trace
from jaxtheory.curvature.flatness._quadratic import shannon_entropy as shannon_entropy
from jaxtheory.curvature.flatness._relative import (
    relative_flatness as relative_flatness,
)
from jaxtheory.curvature.flatness._smoothed import lpf as lpf
from jaxtheory.curvature.flatness._table import MEASURES as MEASURES
from jaxtheory.curvature.flatness._table import Measure as Measure
from jaxtheory.curvature.flatness._table import all_measures as all_measures
