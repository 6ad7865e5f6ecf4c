"""Inference from dynamics: confidence intervals from the iterates of averaged SGD."""

from jaxtheory.dynamics.inference._batch_means import batch_means as batch_means
from jaxtheory.dynamics.inference._higrad import higrad as higrad
from jaxtheory.dynamics.inference._interval import Interval as Interval
