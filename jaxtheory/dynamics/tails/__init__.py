"""Heavy tails: indices with their errors, stable laws, and weight spectra."""

from jaxtheory.dynamics.tails._clauset import PowerLaw as PowerLaw
from jaxtheory.dynamics.tails._clauset import clauset as clauset
from jaxtheory.dynamics.tails._clauset import power_law_test as power_law_test
from jaxtheory.dynamics.tails._diagnose import diagnose as diagnose
from jaxtheory.dynamics.tails._kesten import kesten_tail_index as kesten_tail_index
from jaxtheory.dynamics.tails._kesten import (
    linear_regression_tail_index as linear_regression_tail_index,
)
from jaxtheory.dynamics.tails._kesten import (
    matrix_kesten_tail_index as matrix_kesten_tail_index,
)
from jaxtheory.dynamics.tails._log_moment import log_moment as log_moment
from jaxtheory.dynamics.tails._order import HillPlot as HillPlot
from jaxtheory.dynamics.tails._order import TailIndex as TailIndex
from jaxtheory.dynamics.tails._order import dedh as dedh
from jaxtheory.dynamics.tails._order import hill as hill
from jaxtheory.dynamics.tails._order import hill_plot as hill_plot
from jaxtheory.dynamics.tails._order import pickands as pickands
from jaxtheory.dynamics.tails._spectra import NoiseComparison as NoiseComparison
from jaxtheory.dynamics.tails._spectra import WeightSpectrum as WeightSpectrum
from jaxtheory.dynamics.tails._spectra import (
    eigenvalues_against_marchenko_pastur as eigenvalues_against_marchenko_pastur,
)
from jaxtheory.dynamics.tails._spectra import (
    spectrum_against_marchenko_pastur as spectrum_against_marchenko_pastur,
)
from jaxtheory.dynamics.tails._spectra import weight_spectra as weight_spectra
from jaxtheory.linalg import isotropic_stable as isotropic_stable
from jaxtheory.linalg import stable as stable
