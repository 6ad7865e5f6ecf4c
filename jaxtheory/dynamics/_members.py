"""The states in which a population begins."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxtheory._types import Params, TrainState
from jaxtheory.batching import check_params
from jaxtheory.dynamics._checks import check_runs
from jaxtheory.dynamics._run import strong


def init_population(
    optimizer: optax.GradientTransformation,
    params: Params,
    *,
    hyperparams: Mapping[str, Any] | None = None,
    model_state: PyTree = (),
) -> TrainState:
    """The states in which ``m`` runs begin, for `train_population`.

    ``jax.vmap(model.init, (0, None))(keys, x)`` makes parameters of ``m`` runs, and
    ``jax.tree.map(lambda a: jnp.stack([a] * m), params)`` copies of one.

    Args:
        optimizer: An optax optimizer, the same for all runs but for its
            hyperparameters. Those that differ are injected:
            ``optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)``.
        params: Initial parameters, runs on axis 0 of every array ``[m, ...]``.
        hyperparams: For each name of an injected hyperparameter, its value in each run
            ``[m]``. None leaves all at the values given to `optimizer`.
        model_state: Non-trained variables, runs on axis 0; ``()`` if none.

    Returns:
        The states at step 0, runs on axis 0 of every array.

    Raises:
        ValueError: `params` or `model_state` have no axis of runs or disagree about
            their number; `optimizer` has no such hyperparameter, several of that name,
            or a schedule for it, which would write over it at each step; the values are
            not one for each run.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)
        >>> states = init_population(
        ...     optimizer, jnp.ones((2, 3)), hyperparams={"learning_rate": [0.1, 0.2]}
        ... )
        >>> states.step.tolist(), states.params.shape
        ([0, 0], (2, 3))
        >>> [round(float(x), 1) for x in states.opt_state.hyperparams["learning_rate"]]
        [0.1, 0.2]
    """
    check_params(params)
    num_runs = check_runs(params=params, model_state=model_state)
    params = strong(params)
    opt_state = jax.vmap(optimizer.init)(params)
    for name, values in (hyperparams or {}).items():
        opt_state = _written(opt_state, name, values, num_runs)
    step = jnp.zeros(num_runs, jnp.int32)
    return strong(TrainState(step, params, opt_state, model_state, params))


def _written(opt_state, name, values, num_runs):
    """The optimizer state with one hyperparameter set."""
    _check_name(opt_state, name)
    values = np.asarray(values) if isinstance(values, list | tuple) else values
    shape, dtype = np.shape(values), getattr(values, "dtype", None)
    numbers = dtype is not None and np.issubdtype(np.dtype(dtype), np.number)
    if shape != (num_runs,) or not numbers:
        raise ValueError(
            f"`hyperparams[{name!r}]` must be one number for each of the {num_runs} "
            f"runs, but has shape {shape} and dtype {dtype}."
        )

    def write(state):
        if not _is_injected(state):
            return state
        inner = jax.tree.map(write, state.inner_state, is_leaf=_is_injected)
        known = dict(state.hyperparams)
        if name in known:
            known[name] = jnp.asarray(values, known[name].dtype)
        return state._replace(hyperparams=known, inner_state=inner)

    return jax.tree.map(write, opt_state, is_leaf=_is_injected)


def _check_name(opt_state, name):
    """Raise unless exactly one injected hyperparameter has that name, and holds."""
    states = list(_injected(opt_state))
    names = [known for state in states for known in state.hyperparams]
    if names.count(name) != 1:
        has = f"has {sorted(names)}" if names else "has none injected"
        raise ValueError(
            f"`hyperparams[{name!r}]` must be the name of one hyperparameter of "
            f"`optimizer`, which {has}. Make it with "
            f"`optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)`, for example; "
            "where it is optional, give it a value there."
        )
    if any(name in state.hyperparams_states for state in states):
        raise ValueError(
            f"`hyperparams[{name!r}]` must be a constant of `optimizer`, but there it "
            "is a schedule, which would write over it at each step. Give it a number."
        )


def _injected(tree) -> Iterator[optax.InjectStatefulHyperparamsState]:
    """All states of `inject_hyperparams` in an optimizer state."""
    for leaf in jax.tree.leaves(tree, is_leaf=_is_injected):
        if _is_injected(leaf):
            yield leaf
            yield from _injected(leaf.inner_state)


def _is_injected(tree):
    return isinstance(tree, optax.InjectStatefulHyperparamsState)
