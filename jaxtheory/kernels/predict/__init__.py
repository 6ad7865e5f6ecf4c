"""Predict training from kernels: the linear model, its outputs, ensembles of it."""

from jaxtheory.kernels.predict._any_loss import gradient_descent as gradient_descent
from jaxtheory.kernels.predict._any_loss import gradient_flow as gradient_flow
from jaxtheory.kernels.predict._curvature import (
    critical_learning_rate as critical_learning_rate,
)
from jaxtheory.kernels.predict._expand import linearize as linearize
from jaxtheory.kernels.predict._expand import taylor_expand as taylor_expand
from jaxtheory.kernels.predict._gaussian import Gaussian as Gaussian
from jaxtheory.kernels.predict._gaussian import ensemble as ensemble
from jaxtheory.kernels.predict._gaussian import posterior as posterior
from jaxtheory.kernels.predict._mse import gradient_descent_mse as gradient_descent_mse
from jaxtheory.kernels.predict._mse import gradient_flow_mse as gradient_flow_mse
from jaxtheory.kernels.predict._problem import Prediction as Prediction
