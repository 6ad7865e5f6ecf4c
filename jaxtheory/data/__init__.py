"""Data sets and tasks with known ground truth."""

from jaxtheory.data._digits import Digits as Digits
from jaxtheory.data._digits import digits as digits
from jaxtheory.data._mixture import GaussianMixture as GaussianMixture
from jaxtheory.data._mixture import gaussian_mixture as gaussian_mixture
from jaxtheory.data._regression import SingleIndex as SingleIndex
from jaxtheory.data._regression import Teacher as Teacher
from jaxtheory.data._regression import single_index as single_index
from jaxtheory.data._regression import teacher as teacher
