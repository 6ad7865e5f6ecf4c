"""Steepest descent on separable data, and the directions of largest margin."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import dynamics
from jaxtheory.dynamics import implicit

NORMS: dict[str, Literal["l2", "linf"]] = {
    "gradient descent": "l2",
    "sign descent": "linf",
}


class Margins(NamedTuple):
    """Margins over the largest one, ``[algorithms, norms, seeds, records]``.

    Attributes:
        steps: Steps of the records.
        share: Smallest ``y <w, x>`` over the norm of ``w``, over the largest possible.
        gap: What theory lets `share` lack, of each algorithm in its own norm, at the
            end ``[algorithms, seeds]``.
        cosine: Of the direction of gradient descent with that of the largest margin,
            at the end ``[seeds]``.
        certified: Whether all largest margins are proved by their duals.
    """

    steps: np.ndarray
    share: np.ndarray
    gap: np.ndarray
    cosine: np.ndarray
    certified: bool


def problem(config: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian inputs with labels of a random direction, those near it left out."""
    rng = np.random.default_rng([config.seed, seed, 1])
    x = rng.normal(size=(40 * config.margin_points, config.margin_dim))
    score = x @ rng.normal(size=config.margin_dim) / config.margin_dim**0.5
    far = np.flatnonzero(np.abs(score) > 0.5)[: config.margin_points]
    return x[far], np.where(score[far] > 0, 1, -1)


def exponential(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    """The exponential loss ``mean exp(-y <w, x>)``."""
    del key
    x, y = batch
    return jnp.mean(jnp.exp(-y * (x @ params))), model_state


@functools.cache
def optimizer(name: str, rate: float) -> optax.GradientTransformation:
    """Normalised steepest descent with steps ``rate / sqrt(t + 1)``."""
    steps = optax.scale_by_learning_rate(lambda t: rate / jnp.sqrt(t + 1.0))
    if name == "sign descent":
        return optax.chain(optax.scale_by_sign(), steps)
    return optax.chain(optax.normalize_by_update_norm(eps=1e-300), steps)


def run(config: Any) -> Margins:
    """Both algorithms on all data sets."""
    rows = [_seed(config, seed) for seed in range(config.num_seeds)]
    share, gap, cosine, certified = zip(*rows, strict=True)
    steps = np.linspace(0, config.margin_steps, config.margin_records + 1)[1:]
    return Margins(
        steps, np.stack(share, 2), np.stack(gap, -1), np.array(cosine), all(certified)
    )


def _seed(config, seed):
    x, y = problem(config, seed)
    best = {norm: implicit.max_margin(x, y, norm=norm) for norm in NORMS.values()}
    paths = [_path(config, name, x, y) for name in NORMS]
    share = np.array(
        [
            [_margins(path, x, y, norm) / best[norm].margin for norm in best]
            for path in paths
        ]
    )
    gap = np.array([_gap(config, x, best[norm].margin, norm) for norm in best])
    last = paths[0][-1]
    cosine = last @ best["l2"].direction / np.linalg.norm(last)
    return share, gap, cosine, all(m.converged and m.separable for m in best.values())


def _path(config, name, x, y):
    """Weights at the records after the first, which is zero."""
    method = optimizer(name, config.margin_rate)
    history = dynamics.train(
        exponential,
        dynamics.init(method, jnp.zeros(x.shape[1])),
        method,
        (jnp.asarray(x), jnp.asarray(y, float)),
        num_steps=config.margin_steps,
        key=jax.random.key(0),  # of a full batch; nothing is drawn
        record={"w": lambda state: state.params},
        record_every=config.margin_steps // config.margin_records,
        progress=False,
    )
    return history.records["w"][1:]


def _margins(path, x, y, norm):
    order = {"l2": 2, "linf": np.inf}[norm]
    return np.min(path @ x.T * y, axis=1) / np.linalg.norm(path, order, axis=1)


def _gap(config, x, margin, norm):
    """What the margin of normalised steepest descent can lack at the end.

    A step of length ``h`` takes the logarithm of the exponential loss down by ``h``
    times the largest margin at least, but for ``h^2 B^2 / 2`` with ``B`` the largest
    dual norm of an example; the smallest margin is at least minus that logarithm, less
    ``log n``; and the norm is at most the sum of the steps.
    """
    steps = config.margin_rate / np.sqrt(np.arange(1, config.margin_steps + 1))
    size = np.max(np.linalg.norm(x, {"l2": 2, "linf": 1}[norm], axis=1))
    lost = np.log(len(x)) + np.sum(steps**2) * size**2 / 2
    return lost / np.sum(steps) / margin
