"""Data sets and tasks with known ground truth."""

from jaxtheory.data._digits import Digits as Digits
from jaxtheory.data._digits import digits as digits
from jaxtheory.data._hermite import hermite_coefficients as hermite_coefficients
from jaxtheory.data._hermite import information_exponent as information_exponent
from jaxtheory.data._mixture import GaussianMixture as GaussianMixture
from jaxtheory.data._mixture import gaussian_mixture as gaussian_mixture
from jaxtheory.data._multi_index import MultiIndex as MultiIndex
from jaxtheory.data._multi_index import SparseBoolean as SparseBoolean
from jaxtheory.data._multi_index import leap as leap
from jaxtheory.data._multi_index import multi_index as multi_index
from jaxtheory.data._multi_index import sparse_parity as sparse_parity
from jaxtheory.data._multi_index import staircase as staircase
from jaxtheory.data._regression import SingleIndex as SingleIndex
from jaxtheory.data._regression import Teacher as Teacher
from jaxtheory.data._regression import single_index as single_index
from jaxtheory.data._regression import teacher as teacher
