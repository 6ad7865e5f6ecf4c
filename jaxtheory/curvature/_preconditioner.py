"""Diagonal preconditioners of optimizers, and operators as they see them."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, PyTree

from jaxtheory.batching import check_number
from jaxtheory.linalg import (
    check_symmetric,
    check_vector,
    dimension,
    function_operator,
)

Scalar: TypeAlias = float | Float[Array, ""]


def preconditioned(
    operator: lx.AbstractLinearOperator, diagonal: PyTree[Float[Array, "..."]]
) -> lx.FunctionLinearOperator:
    """Build ``P^-1/2 A P^-1/2`` for a symmetric operator and a diagonal ``P``.

    Its largest eigenvalue is the sharpness that an optimizer with preconditioner ``P``
    sees.

    Args:
        operator: Symmetric operator ``A`` on a pytree space.
        diagonal: Positive diagonal of ``P``, a pytree like the operator's vectors: of
            `preconditioner`, or for an operator on selected leaves
            ``select_leaves(diagonal, select)``.

    Returns:
        A symmetric operator on the same space; positive semi-definite where `operator`
        is said to be.

    Raises:
        ValueError: `operator` is not square or not said to be symmetric, or `diagonal`
            has another structure or shape.

    Example:
        >>> import jax.numpy as jnp, lineax as lx
        >>> matrix = jnp.diag(jnp.array([2.0, 9.0]))
        >>> A = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        >>> preconditioned(A, jnp.array([1.0, 9.0])).mv(jnp.ones(2)).tolist()
        [2.0, 1.0]

    References:
        Cohen et al., Adaptive gradient methods at the edge of stability,
        arXiv:2207.14484.
    """
    dimension(operator)
    check_symmetric(operator)
    structure = operator.in_structure()
    check_vector(diagonal, structure, "diagonal")
    tags = [lx.symmetric_tag]
    if lx.is_positive_semidefinite(operator):
        tags.append(lx.positive_semidefinite_tag)
    return function_operator(
        _precondition, operator, diagonal, structure=structure, tags=tuple(tags)
    )


def _precondition(operator, diagonal, vector):
    scale = lambda v, d: v / jnp.sqrt(d)
    return jax.tree.map(
        scale, operator.mv(jax.tree.map(scale, vector, diagonal)), diagonal
    )


def preconditioner(
    opt_state: PyTree,
    *,
    b1: Scalar | None = None,
    b2: Scalar | None = None,
    decay: Scalar | None = None,
    eps: Scalar | None = None,
    eps_root: Scalar | None = None,
    eps_in_sqrt: bool | None = None,
) -> PyTree[Float[Array, "..."]]:
    r"""Read the diagonal preconditioner of an optimizer from its state.

    With it an update is ``-learning_rate * m / P``, where ``m`` is the average of
    gradients (with weights ``(1 - b1) b1^s`` for Adam) or the gradient itself:

    .. math::
        P_{\text{Adam}} &= (1 - \beta_1^t)
            \left(\sqrt{\nu_t / (1 - \beta_2^t) + \epsilon_{\text{root}}}
            + \epsilon\right) \\
        P_{\text{RMSProp}} &= \sqrt{\nu_t + \epsilon} \quad \text{or} \quad
            \sqrt{\nu_t} + \epsilon, \qquad P_{\text{momentum}} = 1

    - `optax.adam`, `optax.adamw`: `b1`, `b2`, `eps` and `eps_root`. With ``nesterov``
      (`optax.nadam`, `optax.nadamw`) the same, once ``b1^t`` has died out. Weight decay
      is no part of it.
    - `optax.rmsprop`: `eps` and `eps_in_sqrt`; with ``bias_correction`` (``nu`` over
      ``1 - decay^t``) also `decay`. Where it is ``centered``, ``nu`` less the squared
      mean.
    - `optax.sgd` with momentum, also Nesterov's: ones, and no hyperparameters.

    Chains and wrappers (`optax.masked`, `optax.MultiSteps`, `optax.apply_if_finite`,
    `optax.multi_transform` with one such optimizer) are searched. States hold no
    hyperparameters, but those of `optax.inject_hyperparams` do: what they hold is read
    from them and must be left out.

    The states of adamax, radam, lamb and yogi have the type of Adam's and cannot be
    told apart: they are accepted, and the result is not their preconditioner. What
    keeps no state is not seen either: a trace under `optax.scale_by_sign` (signum),
    `optax.scale_by_trust_ratio` (lars) or `optax.normalize_by_update_norm` counts as
    momentum, although its steps do not shrink with the gradient.

    Args:
        opt_state: State of one of these optimizers, after at least one update: before
            the first, bias correction is 0/0 and the result NaN.
        b1: Decay of the first moment, as given to the optimizer.
        b2: Decay of Adam's second moment.
        decay: Decay of RMSProp's second moment.
        eps: The optimizer's epsilon.
        eps_root: Adam's epsilon inside the root, 0 by default as in optax.
        eps_in_sqrt: Whether RMSProp's epsilon is inside the root, True by default as in
            optax. Required under `optax.inject_hyperparams`, which holds no bools.

    Returns:
        The positive diagonal of ``P``, a pytree like the parameters.

    Raises:
        ValueError: The state holds no moments that are known, or those of several
            optimizers; a hyperparameter is missing, belongs to another optimizer, is
            held by the state already, or out of range.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.adam(0.1)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> _, state = optimizer.update(jnp.array([3.0]), state)
        >>> P = preconditioner(state, b1=0.9, b2=0.999, eps=1e-8)
        >>> [round(float(p), 4) for p in P]  # (1 - 0.9) * 3
        [0.3]

    References:
        arXiv:2207.14484, section 3.
    """
    given = {
        "b1": b1,
        "b2": b2,
        "decay": decay,
        "eps": eps,
        "eps_root": eps_root,
        "eps_in_sqrt": eps_in_sqrt,
    }
    name, state, injected = _find_moments(opt_state)
    needed, compute = _KINDS[name]
    values = _hyperparameters(name, needed, given, injected)
    return compute(state, **values)


def _adam(state, *, b1, b2, eps, eps_root):
    scale, bias = 1 - b1**state.count, 1 - b2**state.count
    root = lambda v: scale * (jnp.sqrt(v / bias + eps_root) + eps)
    return jax.tree.map(lambda v: root(v).astype(v.dtype), state.nu)


def _rmsprop(state, *, eps, eps_in_sqrt, decay=0.0):
    counted, centered = ("count" in state._fields, "mu" in state._fields)
    bias = 1 - decay**state.count if counted else 1.0

    def root(second, first=0.0):
        moment = second / bias - (first / bias) ** 2
        inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)
        return (jnp.sqrt(moment + inside) + outside).astype(second.dtype)

    return jax.tree.map(root, state.nu, *([state.mu] if centered else []))


def _momentum(state):
    return jax.tree.map(jnp.ones_like, state.trace)


# By name, because optax does not export all of them: the hyperparameters that the
# preconditioner takes, and how.
_RMSPROP = (("eps", "eps_in_sqrt"), _rmsprop)
_COUNTED_RMSPROP = (("decay", "eps", "eps_in_sqrt"), _rmsprop)
_KINDS: Mapping[str, tuple[tuple[str, ...], Callable[..., PyTree]]] = {
    "ScaleByAdamState": (("b1", "b2", "eps", "eps_root"), _adam),
    "ScaleByRmsState": _RMSPROP,
    "ScaleByRmsWithCountState": _COUNTED_RMSPROP,
    "ScaleByRStdDevState": _RMSPROP,
    "ScaleByRStdDevWithCountState": _COUNTED_RMSPROP,
    "TraceState": ((), _momentum),
}
_INJECTED = optax.InjectHyperparamsState | optax.InjectStatefulHyperparamsState
_NO_MOMENTS = optax.EmptyState | optax.ScaleByScheduleState | None
_DEFAULTS = {"eps_root": 0.0, "eps_in_sqrt": True}
_DECAY = (lambda b: 0 <= b < 1, "in [0, 1)")
_EPSILON = (lambda e: 0 <= e < math.inf, "at least 0 and finite")
_RANGES = {
    "b1": _DECAY,
    "b2": _DECAY,
    "decay": _DECAY,
    "eps": _EPSILON,
    "eps_root": _EPSILON,
}


def _find_moments(opt_state):
    """The name of the state that preconditions, itself, and what was injected."""
    found = list(_moments(opt_state, {}))
    scaling = [one for one in found if one[0] != "TraceState"]
    chosen = scaling or found
    if len(chosen) != 1:
        raise ValueError(
            "`opt_state` must hold the moments of exactly one of adam, adamw, rmsprop "
            f"or momentum, but holds {[name for name, *_ in found] or 'none'}. Of "
            "several, pass the part that belongs to the parameters in question; plain "
            "gradient descent has none, and needs no preconditioner."
        )
    return chosen[0]


def _moments(node: Any, injected: dict[str, Any]) -> Iterator[tuple]:
    """Each state in `node` that holds moments, with the hyperparameters around it."""
    if type(node).__name__ in _KINDS:
        yield type(node).__name__, node, injected
        return
    if isinstance(node, _INJECTED):
        children, injected = [node.inner_state], injected | node.hyperparams
    elif isinstance(node, optax.MaskedState | optax.ApplyIfFiniteState):
        children = [node.inner_state]
    elif isinstance(node, optax.MultiStepsState):
        children = [node.inner_opt_state]
    elif isinstance(node, optax.PartitionState):
        children = node.inner_states.values()
    elif type(node) in (tuple, list):
        children = node
    elif isinstance(node, _NO_MOMENTS):
        children = []
    else:
        raise ValueError(
            f"`opt_state` must be the state of adam, adamw, rmsprop or momentum, alone "
            f"or in a chain, but holds a `{type(node).__name__}`, whose part in the "
            "preconditioner is not known. Pass the part of the state that "
            "preconditions, if there is one (`opt_state[0]`)."
        )
    for child in children:
        yield from _moments(child, injected)


def _hyperparameters(kind, needed, given, injected):
    """The values that `kind` takes: as given, else injected, else by default."""
    values = {}
    for name, value in given.items():
        if value is not None and name not in needed:
            takes = ", ".join(f"`{other}`" for other in needed) or "none"
            raise ValueError(
                f"`{name}` must be left out: the state is a `{kind}`, which takes "
                f"{takes}."
            )
        if value is not None and name in injected:
            raise ValueError(
                f"`{name}` must be left out: the state of `optax.inject_hyperparams` "
                "holds its value."
            )
        if name == "eps_in_sqrt" and name in needed and injected and value is None:
            raise ValueError(
                "`eps_in_sqrt` must be given as it was to the optimizer (True by "
                "default in optax): the state of `optax.inject_hyperparams` holds "
                "numbers, but no bools."
            )
        if name in needed:
            held = injected.get(name, _DEFAULTS.get(name))
            values[name] = _checked(kind, name, held if value is None else value)
    return values


def _checked(kind, name, value):
    if value is None:
        raise ValueError(
            f"`{name}` must be given as it was to the optimizer: its state (a "
            f"`{kind}`) does not hold it, unless made by `optax.inject_hyperparams`."
        )
    if name in _RANGES:
        check_number(name, value, *_RANGES[name])
    elif not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but was {value!r}.")
    return value
