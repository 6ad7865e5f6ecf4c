"""Kernels of networks: empirical neural tangent kernels, comparison, regression."""

from jaxtheory.kernels import predict as predict
from jaxtheory.kernels._cka import cka as cka
from jaxtheory.kernels._cka import kernel_cka as kernel_cka
from jaxtheory.kernels._cka import target_energy as target_energy
from jaxtheory.kernels._compare import centred_alignment as centred_alignment
from jaxtheory.kernels._compare import kernel_change as kernel_change
from jaxtheory.kernels._compare import kernel_distance as kernel_distance
from jaxtheory.kernels._compare import kernel_velocity as kernel_velocity
from jaxtheory.kernels._compare import uncentred_alignment as uncentred_alignment
from jaxtheory.kernels._coordinate_check import CoordinateCheck as CoordinateCheck
from jaxtheory.kernels._coordinate_check import FamilyMember as FamilyMember
from jaxtheory.kernels._coordinate_check import coordinate_check as coordinate_check
from jaxtheory.kernels._diagonal import DiagonalLimit as DiagonalLimit
from jaxtheory.kernels._diagonal import diagonal_network_limit as diagonal_network_limit
from jaxtheory.kernels._empirical import empirical_ntk as empirical_ntk
from jaxtheory.kernels._feature_learning import agop as agop
from jaxtheory.kernels._feature_learning import direction_overlap as direction_overlap
from jaxtheory.kernels._feature_learning import (
    neural_feature_ansatz as neural_feature_ansatz,
)
from jaxtheory.kernels._feature_learning import subspace_overlap as subspace_overlap
from jaxtheory.kernels._features import ntk_features as ntk_features
from jaxtheory.kernels._infinite import InfiniteKernel as InfiniteKernel
from jaxtheory.kernels._infinite import infinite_width as infinite_width
from jaxtheory.kernels._lazy import lazy as lazy
from jaxtheory.kernels._lazy import lazy_loss as lazy_loss
from jaxtheory.kernels._learning_curve import LearningCurve as LearningCurve
from jaxtheory.kernels._learning_curve import learning_curve as learning_curve
from jaxtheory.kernels._matrix_free import NTKRegression as NTKRegression
from jaxtheory.kernels._matrix_free import ntk_regression as ntk_regression
from jaxtheory.kernels._mercer import MercerSpectrum as MercerSpectrum
from jaxtheory.kernels._mercer import TargetSpectrum as TargetSpectrum
from jaxtheory.kernels._mercer import circle_spectrum as circle_spectrum
from jaxtheory.kernels._mercer import hypercube_spectrum as hypercube_spectrum
from jaxtheory.kernels._mercer import target_spectrum as target_spectrum
from jaxtheory.kernels._operator import ntk_operator as ntk_operator
from jaxtheory.kernels._power_law import power_law as power_law
from jaxtheory.kernels._recursive import RecursiveFeatures as RecursiveFeatures
from jaxtheory.kernels._recursive import (
    recursive_feature_machine as recursive_feature_machine,
)
from jaxtheory.kernels._regression import KernelRegression as KernelRegression
from jaxtheory.kernels._regression import kernel_regression as kernel_regression
from jaxtheory.kernels._scaling import NTKScaling as NTKScaling
from jaxtheory.kernels._scaling import ntk_scaling as ntk_scaling
from jaxtheory.kernels._spectrum import SpectrumSummary as SpectrumSummary
from jaxtheory.kernels._spectrum import spectrum_summary as spectrum_summary
from jaxtheory.kernels._to_disk import write_empirical_ntk as write_empirical_ntk
