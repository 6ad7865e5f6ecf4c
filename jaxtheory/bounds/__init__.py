"""Generalization bounds that say what they assume."""

from jaxtheory._types import Bound as Bound
from jaxtheory.bounds import evaluate as evaluate
from jaxtheory.bounds._cmi import evaluated_cmi as evaluated_cmi
from jaxtheory.bounds._cmi import functional_cmi as functional_cmi
from jaxtheory.bounds._compression import compression as compression
from jaxtheory.bounds._few_shot import few_shot as few_shot
from jaxtheory.bounds._fractal import fractal_dimension as fractal_dimension
from jaxtheory.bounds._fractal import random_set_box as random_set_box
from jaxtheory.bounds._fractal import sharpness_dimension as sharpness_dimension
from jaxtheory.bounds._gaussian import gaussian_pac_bayes as gaussian_pac_bayes
from jaxtheory.bounds._gaussian import prior_bound as prior_bound
from jaxtheory.bounds._geometric import geometric_few_shot as geometric_few_shot
from jaxtheory.bounds._gibbs import zero_one_error as zero_one_error
from jaxtheory.bounds._heavy_tail import heavy_tail_sde as heavy_tail_sde
from jaxtheory.bounds._holdout import holdout as holdout
from jaxtheory.bounds._kl import kl_inverse as kl_inverse
from jaxtheory.bounds._margin import linear_margin as linear_margin
from jaxtheory.bounds._measures import measures as measures
from jaxtheory.bounds._norms import norm_measures as norm_measures
from jaxtheory.bounds._norms_margins import margin_distribution as margin_distribution
from jaxtheory.bounds._norms_path import path_norm as path_norm
from jaxtheory.bounds._norms_spectral import spectral as spectral
from jaxtheory.bounds._ntk import ntk_complexity as ntk_complexity
from jaxtheory.bounds._pac_bayes import pac_bayes as pac_bayes
from jaxtheory.bounds._posterior import GaussianPosterior as GaussianPosterior
from jaxtheory.bounds._posterior import bounded_cross_entropy as bounded_cross_entropy
from jaxtheory.bounds._posterior import init_posterior as init_posterior
from jaxtheory.bounds._posterior import pac_bayes_objective as pac_bayes_objective
from jaxtheory.bounds._random_set import random_set_stability as random_set_stability
from jaxtheory.bounds._random_set import (
    random_set_topological as random_set_topological,
)
from jaxtheory.bounds._select import Regret as Regret
from jaxtheory.bounds._select import Selection as Selection
from jaxtheory.bounds._select import select as select
from jaxtheory.bounds._sgld import sgld_gradient_norm as sgld_gradient_norm
from jaxtheory.bounds._sgld import sgld_incoherence as sgld_incoherence
from jaxtheory.bounds._stability import uniform_stability as uniform_stability
from jaxtheory.bounds._table import Table as Table
from jaxtheory.bounds._table import table as table
from jaxtheory.bounds._topological import topological as topological
from jaxtheory.bounds._trajectory_finite_set import finite_set as finite_set
from jaxtheory.bounds._virtual_noise import virtual_noise as virtual_noise
