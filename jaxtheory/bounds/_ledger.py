"""What a bound assumes, and what follows from it: certificate or not."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer

from jaxtheory._types import Bound
from jaxtheory.batching import check_number

# The status of an assumption. A setting says where the inputs come from (independent
# examples, a prior fixed before they were seen): every statistical statement starts
# from one and no program can check it, so it is recorded and not counted. What could
# have been checked or computed, and was not, is taken on trust.
SETTING = "setting"
VERIFIED = "verified"
BY_CONSTRUCTION = "holds by construction"
ESTIMATED = "estimated"
ON_TRUST = "taken on trust"
VIOLATED = "violated"

_CERTIFYING = (SETTING, VERIFIED, BY_CONSTRUCTION)

INDEPENDENT = (SETTING, "the examples are drawn independently from one law")


def make_bound(
    *,
    value: float,
    empirical_risk: float,
    complexity: float,
    delta: float | None,
    assumptions: Sequence[tuple[str, str]],
) -> Bound:
    """A `Bound` on a risk in [0, 1] whose verdicts follow from its assumptions.

    Args:
        value: The upper bound.
        empirical_risk: See `Bound`.
        complexity: See `Bound`.
        delta: See `Bound`.
        assumptions: Pairs of a status of this module and what is assumed.

    Returns:
        The bound. `certificate` is True when every status is a setting, verified or by
        construction; `vacuous` is True when `value` is not below 1, which bounds the
        risk of every predictor without data. (Chance level ``1 - 1/k`` does not: it is
        the risk of guessing, not a limit to the risk of the predictor at hand.)
    """
    return Bound(
        value=float(value),
        empirical_risk=float(empirical_risk),
        complexity=float(complexity),
        delta=delta,
        certificate=all(status in _CERTIFYING for status, _ in assumptions),
        vacuous=float(value) >= 1.0,
        assumptions=tuple(f"{status}: {text}" for status, text in assumptions),
    )


def check_delta(delta: float) -> float:
    """The probability as a Python float; raise unless it lies between 0 and 1."""
    check_concrete(delta=delta)
    check_number(
        "delta",
        delta,
        lambda d: 0 < d < 1,
        "strictly between 0 and 1 (the bound fails with at most this probability)",
    )
    return float(delta)  # a certificate is computed in double precision


def check_concrete(**values: Any) -> None:
    """Raise if a named value (or a leaf of a named pytree) is traced by JAX."""
    for name, tree in values.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, Tracer):
                raise ValueError(
                    f"`{name}{jax.tree_util.keystr(path)}` must be a concrete value, "
                    "but is traced by a JAX transformation (jit, vmap, grad). Bounds "
                    "are computed on the host in float64: call this outside the "
                    "transformation."
                )
