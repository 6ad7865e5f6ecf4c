"""Krylov and stochastic estimators over operators on pytrees; knows no networks.

Beside them what several packages draw from: maps of sketches, and stable laws.
"""

from jaxtheory.linalg._checks import check_symmetric as check_symmetric
from jaxtheory.linalg._conjugate_gradient import LinearSolution as LinearSolution
from jaxtheory.linalg._conjugate_gradient import (
    conjugate_gradient as conjugate_gradient,
)
from jaxtheory.linalg._count_sketch import CountSketch as CountSketch
from jaxtheory.linalg._count_sketch import draw_count_sketch as draw_count_sketch
from jaxtheory.linalg._density import SpectralDensity as SpectralDensity
from jaxtheory.linalg._density import spectral_density as spectral_density
from jaxtheory.linalg._diagonal import diagonal as diagonal
from jaxtheory.linalg._diagonal import frobenius_norm as frobenius_norm
from jaxtheory.linalg._eigenpairs import Eigenpairs as Eigenpairs
from jaxtheory.linalg._eigenpairs import bottom_eigenpairs as bottom_eigenpairs
from jaxtheory.linalg._eigenpairs import top_eigenpairs as top_eigenpairs
from jaxtheory.linalg._lanczos import Tridiagonal as Tridiagonal
from jaxtheory.linalg._lanczos import lanczos as lanczos
from jaxtheory.linalg._marchenko_pastur import EdgeTest as EdgeTest
from jaxtheory.linalg._marchenko_pastur import Outlier as Outlier
from jaxtheory.linalg._marchenko_pastur import edge_test as edge_test
from jaxtheory.linalg._marchenko_pastur import (
    marchenko_pastur_cdf as marchenko_pastur_cdf,
)
from jaxtheory.linalg._marchenko_pastur import (
    marchenko_pastur_density as marchenko_pastur_density,
)
from jaxtheory.linalg._marchenko_pastur import (
    marchenko_pastur_edges as marchenko_pastur_edges,
)
from jaxtheory.linalg._marchenko_pastur import (
    marchenko_pastur_quantile as marchenko_pastur_quantile,
)
from jaxtheory.linalg._marchenko_pastur import (
    marchenko_pastur_variance as marchenko_pastur_variance,
)
from jaxtheory.linalg._marchenko_pastur import outlier_of_spike as outlier_of_spike
from jaxtheory.linalg._marchenko_pastur import spike_of_outlier as spike_of_outlier
from jaxtheory.linalg._nystrom import Nystrom as Nystrom
from jaxtheory.linalg._nystrom import nystrom as nystrom
from jaxtheory.linalg._operator import check_vector as check_vector
from jaxtheory.linalg._operator import dimension as dimension
from jaxtheory.linalg._operator import function_operator as function_operator
from jaxtheory.linalg._spectral_sums import SpectralSum as SpectralSum
from jaxtheory.linalg._spectral_sums import effective_dimension as effective_dimension
from jaxtheory.linalg._spectral_sums import log_determinant as log_determinant
from jaxtheory.linalg._stable import isotropic_stable as isotropic_stable
from jaxtheory.linalg._stable import stable as stable
from jaxtheory.linalg._trace import trace as trace
