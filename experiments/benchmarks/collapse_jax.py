"""Our side of the collapse benchmark."""

import jax.numpy as jnp

from experiments.benchmarks.collapse_cases import FIELDS, Case
from jaxtheory import collapse


def _statistics(case: Case):
    features, labels, weight, bias = map(jnp.asarray, case)

    def call():
        found = collapse.statistics(features, labels, classifier=(weight, bias))
        return [float(getattr(found, name)) for name in FIELDS]

    return call


OURS = {"ours": _statistics}
