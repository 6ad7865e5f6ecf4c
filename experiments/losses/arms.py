"""Implicit penalties written out, and the algorithms that are said to have them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import collapse, dynamics, models

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


class Setting(NamedTuple):
    """One candidate of an arm.

    Attributes:
        learning_rate: Of gradient descent.
        batch_size: Examples a step; None takes all.
        strength: Of the penalty, or the probability of a wrong label.
    """

    learning_rate: float
    batch_size: int | None = None
    strength: float = 0.0


class Arm(NamedTuple):
    """A way to train.

    Attributes:
        says: What it is.
        penalty: ``penalty(mean_loss, model, params, x, y, key)``, or None; times the
            strength it is added to the loss.
        flips: Whether strengths are probabilities of a wrong label instead.
        settings: The candidates, as many for every arm.
    """

    says: str
    penalty: Callable[..., Any] | None
    flips: bool
    settings: tuple[Setting, ...]


def trace_of_hessian(mean_loss, model, params, x, y, key):
    """Hutchinson's estimate with one probe of signs: label noise (2106.06530)."""
    del model, x, y
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draw = lambda key, a: jax.random.rademacher(key, a.shape, a.dtype)
    probe = jax.tree.unflatten(treedef, list(map(draw, list(keys), leaves)))
    product = jax.jvp(jax.grad(mean_loss), (params,), (probe,))[1]
    return optax.tree.vdot(probe, product)


def gradient_norm(mean_loss, model, params, x, y, key):
    """A quarter of the squared gradient, of which descent has eta (2009.11162)."""
    del model, x, y, key
    return optax.tree.norm(jax.grad(mean_loss)(params), squared=True) / 4


def norm(mean_loss, model, params, x, y, key):
    """Half the squared norm: its limit is the largest margin (1906.05890)."""
    del mean_loss, model, x, y, key
    return optax.tree.norm(params, squared=True) / 2


def variability(mean_loss, model, params, x, y, key):
    """Within-class over between-class variance of the last features."""
    del mean_loss, key
    last = list(models.features(model, params, x).values())[-1]
    return collapse.collapse_penalty(last, y, num_classes=10)


def _settings(rates, strengths=(0.0,), batch_sizes=(None,)):
    return tuple(
        Setting(rate, size, strength)
        for rate in rates
        for size in batch_sizes
        for strength in strengths
    )


RATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_TWO = (0.03, 0.3)  # a slow one, which stops early, and a fast one
_FLIPS = (0.02, 0.05, 0.1, 0.2)


def _penalised(says, penalty, strengths):
    return Arm(says, penalty, False, _settings(_TWO, strengths))


ARMS = {
    "plain": Arm("gradient descent", None, False, _settings(RATES)),
    "small batches": Arm(
        "of 8 and 32", None, False, _settings(RATES[:3] + RATES[4:5], (0.0,), (8, 32))
    ),
    "label noise": Arm("labels flipped anew", None, True, _settings(_TWO, _FLIPS)),
    "trace": _penalised("+ tr H", trace_of_hessian, (1e-3, 3e-3, 1e-2, 3e-2)),
    "gradient": _penalised("+ |grad L|^2 / 4", gradient_norm, (0.03, 0.3, 3.0, 30.0)),
    "norm": _penalised("+ |w|^2 / 2", norm, (1e-4, 1e-3, 3e-3, 1e-2)),
    "collapse": _penalised("+ tr S_W / tr S_B", variability, (0.01, 0.03, 0.1, 0.3)),
}


@functools.cache
def make_model(widths: tuple[int, ...]) -> Any:
    """The network; the same object for equal widths, so that programs compile once."""
    return models.MLP(widths, num_outputs=10)


@dataclasses.dataclass(frozen=True)
class _Penalised:
    """Mean loss plus a penalty; its strength is the model state, so runs can differ."""

    model: Any
    penalty: Callable[..., Any] | None

    def __call__(self, params, model_state, batch, key):
        x, y = batch
        mean = lambda p: jnp.mean(cross_entropy(self.model.apply(p, x), y))
        value = mean(params)
        if self.penalty is not None:
            extra = self.penalty(mean, self.model, params, x, y, key)
            value = value + model_state * extra
        return value, model_state


@functools.cache
def _label_noise(model, strength):
    return dynamics.implicit.label_noise(
        model.apply, cross_entropy, scale=strength, kind="flip"
    )


def train(
    arm: Arm,
    settings: tuple[Setting, ...],
    widths: tuple[int, ...],
    x: Any,
    y: Any,
    num_steps: int,
    key: Any,
) -> Any:
    """Train one network for each setting; returns parameters, stacked.

    All settings of a call start from the same weights.
    """
    model = make_model(widths)
    params = model.init(jax.random.fold_in(key, 0), x[:1])
    if not arm.flips:
        objective = _Penalised(model, arm.penalty)
        return _train(objective, settings, params, x, y, num_steps, key)
    # The probability is part of the program: one population for each.
    found = [None] * len(settings)
    for strength in dict.fromkeys(s.strength for s in settings):
        rows = [i for i, s in enumerate(settings) if s.strength == strength]
        same = tuple(settings[i] for i in rows)
        objective = _label_noise(model, strength)
        trained = _train(objective, same, params, x, y, num_steps, key)
        for place, row in enumerate(rows):
            found[row] = jax.tree.map(lambda a, i=place: a[i], trained)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _train(objective, settings, params, x, y, num_steps, key):
    """One population, with a run for each setting."""
    count = len(settings)
    stacked = jax.tree.map(lambda a: jnp.repeat(a[None], count, axis=0), params)
    states = dynamics.init_population(
        OPTIMIZER,
        stacked,
        hyperparams={"learning_rate": jnp.array([s.learning_rate for s in settings])},
        model_state=jnp.array([s.strength for s in settings]),
    )
    sizes = [s.batch_size for s in settings]
    history = dynamics.train_population(
        objective,
        states,
        OPTIMIZER,
        (x, y),
        num_steps=num_steps,
        keys=jax.random.split(jax.random.fold_in(key, 1), count),
        batch_size=None if sizes[0] is None else sizes,
        record_every=num_steps,
        progress=False,
    )
    return history.state.params


@functools.partial(jax.jit, static_argnums=0)
def errors(model: Any, params: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Share of wrong predictions and mean loss of each network."""

    def one(params):
        outputs = model.apply(params, x)
        wrong = jnp.mean(jnp.argmax(outputs, axis=1) != y)
        return wrong, jnp.mean(cross_entropy(outputs, y))

    return jax.vmap(one)(params)


def best(found: np.ndarray) -> int:
    """The candidate of least mean validation error over splits ``[splits, settings]``.

    A candidate that diverged has NaN loss and, counted as wrong, error .9.
    """
    return int(np.argmin(np.mean(found, axis=0)))
