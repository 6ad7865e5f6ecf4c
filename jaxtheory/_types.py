"""The vocabulary of jaxtheory: the contracts that every package speaks, as types.

Axis letters mean the same everywhere: ``n`` examples, ``k`` outputs or classes,
``p`` parameters, ``d`` features, ``r`` records.

- **model** (`ApplyFn`): ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``, batched,
  deterministic, no example influences another's output. Compiled once for each function
  object: what it closes over must never change. For other statistics, another scale or
  another architecture build a new function.
- **loss** (`LossFn`): ``loss_fn(outputs[n, ...], targets[n, ...]) -> losses[n]``, one
  number per example; means and weights over examples are taken here.
- **objective** (`Objective`): ``objective(params, model_state, batch, key) ->
  (scalar, model_state)``, what training differentiates.
- **measurement** (`Measurement`): ``measure(state: TrainState) -> pytree of arrays``,
  pure and jittable; one that remembers is a `StatefulMeasurement`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

ApplyFn: TypeAlias = Callable[[Any, Any], Any]
LossFn: TypeAlias = Callable[[Any, Any], Any]
Objective: TypeAlias = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
Params: TypeAlias = PyTree[Float[ArrayLike, "..."]]
KeyArray: TypeAlias = Key[Array, ""]


class Estimate(NamedTuple):
    """A stochastic estimate together with how sure it is.

    Attributes:
        value: The estimate (mean over samples).
        standard_error: Standard error of `value`: the sample standard deviation
            (``1/(s-1)``) over ``sqrt(s)``.
        num_samples: Number ``s`` of independent samples behind it.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    num_samples: Int[Array, ""] | int


class TrainState(NamedTuple):
    """Everything that a training step changes, and the point where training began.

    Attributes:
        step: Number of optimizer steps taken.
        params: Current parameters.
        opt_state: Optimizer state.
        model_state: Non-trained variables (BatchNorm statistics); ``()`` if none.
        initial_params: Parameters at step 0. Kept so that distances, kernels and
            trajectories can be measured from the start without cancellation.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    model_state: Any
    initial_params: Any


Measurement: TypeAlias = Callable[[TrainState], Any]


class StatefulMeasurement(NamedTuple):
    """A measurement that remembers something from one record to the next.

    An eigenvector, for example, from which the next search starts. Both functions are
    pure and jittable.

    Attributes:
        init: ``init(state: TrainState) -> memory``, a pytree of arrays (no random
            keys): what is remembered before the first record. `state` is the one that
            training starts from.
        measure: ``measure(state, memory) -> (value, memory)``: a pytree of arrays that
            is recorded, and a memory of the same structure, shapes and dtypes for the
            next record.
    """

    init: Callable[[TrainState], Any]
    measure: Callable[[TrainState, Any], tuple[Any, Any]]


class Bound(NamedTuple):
    """A bound on a risk; certificates and correlates are told apart.

    Attributes:
        value: The upper bound on the risk named in `assumptions`.
        empirical_risk: The risk on the data that the bound starts from.
        complexity: The complexity term as it enters the bound (for PAC-Bayes, KL plus
            what the prior grid costs, in nats); 0 where there is none.
        delta: The bound holds with probability at least ``1 - delta``; None where the
            statement is in expectation.
        certificate: True only when every assumption is verified or holds by
            construction.
        vacuous: True when `value` is 1 or more, which every risk in [0, 1] satisfies
            without data. A value just below 1 is not much better: hold it against the
            risk of guessing.
        assumptions: Each assumption, saying whether it was verified, holds by
            construction, was estimated, or is taken on trust.
    """

    value: float
    empirical_risk: float
    complexity: float
    delta: float | None
    certificate: bool
    vacuous: bool
    assumptions: tuple[str, ...]
