"""Train a network, or its linearisation, under several options at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtheory import dynamics, models
from jaxtheory.kernels import predict


class Options(NamedTuple):
    """One candidate of Adam.

    Attributes:
        learning_rate: At the start; it falls to zero along a half cosine.
        weight_decay: Decoupled from the gradient: each step multiplies parameters by
            ``1 - learning_rate * weight_decay``.
    """

    learning_rate: float
    weight_decay: float


class Network(NamedTuple):
    """An architecture; equal for equal widths, so that programs are compiled once.

    Attributes:
        model: The module.
        apply_fn: ``apply_fn(params, x) -> outputs``.
    """

    model: models.MLP
    apply_fn: Callable[[Any, Any], Any]


@functools.cache
def make_network(widths: tuple[int, ...], num_outputs: int) -> Network:
    """A ReLU network with He's initialisation, in the standard parametrisation."""
    model = models.MLP(widths, num_outputs)
    return Network(model, model.apply)


@functools.partial(jax.jit, static_argnums=0)
def initial_params(network: Network, x: Any, key: Any) -> Any:
    """Parameters at initialisation."""
    return network.model.init(key, x)


@functools.partial(jax.jit, static_argnums=0)
def outputs(apply_fn: Any, params: Any, start: Any, x: Any) -> Any:
    """Outputs ``[c, n, k]`` of all candidates.

    Args:
        apply_fn: The network.
        params: Parameters of every candidate, stacked.
        start: ``()``; or parameters ``w_0``, and `params` are ``w - w_0`` of the
            linearised network ``J(x) (w - w_0)``, which is zero where it starts.
        x: Inputs.
    """
    if start == ():
        return jax.vmap(apply_fn, (0, None))(params, x)
    linear, begin = predict.linearize(apply_fn, start), apply_fn(start, x)
    return jax.vmap(
        lambda moved: linear(jax.tree.map(jnp.add, start, moved), x) - begin
    )(params)


@functools.cache
def _objective(apply_fn):
    """Sum over candidates of mean squared errors, summed over outputs.

    The gradient of a sum over networks that share nothing is that of each alone.
    """

    def objective(params, start, batch, key):
        x, y = batch
        squares = (outputs(apply_fn, params, start, x) - y[None]) ** 2
        return jnp.sum(squares) / len(x), start

    return objective


@functools.cache
def _optimizer(candidates, num_steps):
    """Adam for stacked parameters, each row with its own options."""

    def one(option):
        rate = optax.cosine_decay_schedule(option.learning_rate, num_steps)
        return optax.adamw(rate, weight_decay=option.weight_decay)

    def update(updates, state, params=None):
        options = Options(*jnp.array(candidates).T)
        step = lambda option, *rest: one(option).update(*rest)
        return jax.vmap(step)(options, updates, state, params)

    return optax.GradientTransformation(jax.vmap(one(candidates[0]).init), update)


def train(
    network: Network,
    params: Any,
    x: Any,
    y: Any,
    *,
    linear: bool,
    candidates: tuple[Options, ...],
    num_steps: int,
    batch_size: int,
    key: Any,
) -> tuple[Any, bool]:
    """Train from the same parameters under every candidate.

    Args:
        network: The architecture.
        params: Where all start.
        x: Inputs.
        y: Targets ``[n, k]``.
        linear: Whether to train the linearisation ``J(x) (w - w_0)`` in place of the
            network. It starts at zero, and weight decay pulls ``w`` to ``w_0``.
        candidates: Options of the optimizer.
        num_steps: Number of steps.
        batch_size: Examples a step, the same ones for all candidates.
        key: Random key of the batches.

    Returns:
        Parameters (``w - w_0`` if linear) stacked over candidates, and whether training
        stopped early because one was not finite any more.
    """
    optimizer = _optimizer(candidates, num_steps)
    begin = lambda a: jnp.stack([a * (not linear)] * len(candidates))
    history = dynamics.train(
        _objective(network.apply_fn),
        dynamics.init(
            optimizer,
            jax.tree.map(begin, params),
            model_state=params if linear else (),
        ),
        optimizer,
        (x, y),
        num_steps=num_steps,
        batch_size=min(batch_size, len(x)),
        key=key,
        progress=False,
    )
    return history.state.params, history.diverged_at is not None
