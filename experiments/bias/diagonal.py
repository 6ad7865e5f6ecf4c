"""Diagonal linear networks from large and small starts, and what they end in."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxtheory.dynamics import implicit


class Diagonal(NamedTuple):
    """Ends of gradient flow; arrays ``[depths, scales, seeds]`` but where said.

    Attributes:
        l1: l1 norm over the least of all interpolations, less 1.
        l2: l2 norm over the least of all, less 1.
        apart: Distance from the minimum of the closed-form penalty, over its norm.
        training: Largest error on a training example.
        error: Test error, ``|beta - truth|^2 / |truth|^2``.
        pinv_error: That of the least l2 norm ``[seeds]``.
        pursuit_error: That of the least l1 norm ``[seeds]``.
        l2_limit: What the penalty lets the squared l2 norm exceed, at most.
        l1_limit: What the penalty lets the l1 norm exceed, at most; for depth 2.
    """

    l1: np.ndarray
    l2: np.ndarray
    apart: np.ndarray
    training: np.ndarray
    error: np.ndarray
    pinv_error: np.ndarray
    pursuit_error: np.ndarray
    l2_limit: np.ndarray
    l1_limit: np.ndarray


def run(config: Any) -> Diagonal:
    """Gradient flow at each depth and scale, in double precision."""
    columns = [_seed(config, seed) for seed in range(config.num_seeds)]
    names = columns[0].keys()
    return Diagonal(**{n: np.stack([c[n] for c in columns], -1) for n in names})


def problem(config: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian inputs, targets, and a teacher with few nonzero coefficients."""
    rng = np.random.default_rng([config.seed, seed])
    x = rng.normal(size=(config.num_points, config.num_features))
    truth = np.zeros(config.num_features)
    truth[: config.num_nonzero] = rng.choice([-1.0, 1.0], config.num_nonzero)
    return x, x @ truth, truth


def _seed(config, seed):
    x, y, truth = problem(config, seed)
    kernel, pursuit = np.linalg.pinv(x) @ y, basis_pursuit(x, y)
    of_truth = lambda beta: np.sum((beta - truth) ** 2) / np.sum(truth**2)
    rows = [
        [
            _end(config, depth, scale, x, y, kernel, pursuit, of_truth)
            for scale in config.scales
        ]
        for depth in config.depths
    ]
    names = rows[0][0].keys()
    found = {n: np.array([[cell[n] for cell in row] for row in rows]) for n in names}
    references = {"pinv_error": of_truth(kernel), "pursuit_error": of_truth(pursuit)}
    return {**found, **{name: np.array(value) for name, value in references.items()}}


def _end(config, depth, scale, x, y, kernel, pursuit, of_truth):
    """Where gradient flow ends, and what is measured there."""
    beta = flow_end(depth, scale, x, y, config.patience)
    least = least_penalty(x, y, depth, scale)
    norm = np.linalg.norm
    return {
        "l1": norm(beta, 1) / norm(pursuit, 1) - 1,
        "l2": norm(beta) / norm(kernel) - 1,
        "apart": norm(beta - least) / norm(least),
        "training": np.max(np.abs(x @ beta - y)),
        "error": of_truth(beta),
        **_limits(depth, scale, beta, pursuit),
    }


def _limits(depth, scale, beta, pursuit):
    """How far from the least norms the least penalty can be (depth 2).

    The penalty is ``sum_j q(z_j)`` with ``z = beta / scale^2``, and ``z^2 / 4 (1 - z^2
    / 48) <= q <= z^2 / 4``, as well as ``|z| (log |z| - 1) <= q <= |z| log(1 + |z|)``;
    it is no more than that of the interpolations of least norm. The sum of ``|z| log
    |z|`` is at least that of equal numbers.
    """
    if depth != 2:
        return {"l2_limit": np.nan, "l1_limit": np.nan}
    z, least = np.abs(beta) / scale**2, np.abs(pursuit) / scale**2
    below = 1 - np.max(z) ** 2 / 48
    l2 = below**-0.5 - 1 if below > 0 else np.inf
    above = np.sum(least * np.log1p(least)) / np.sum(least)
    under = np.log(np.sum(least) / len(z)) - 1
    return {"l2_limit": l2, "l1_limit": above / under - 1 if under > 0 else np.inf}


@functools.cache
def _loss(depth):
    network = implicit.diagonal_network(depth=depth)
    return lambda params, x, y: jnp.sum((network.apply(params, x) - y) ** 2) / 2


def flow_end(depth: int, scale: float, x: Any, y: Any, patience: float) -> np.ndarray:
    """The coefficients that gradient flow ends in.

    Args:
        depth: Layers.
        scale: Of the initialisation.
        x: Inputs.
        y: Targets.
        patience: Time, in units of what the slowest direction of the kernel at the
            start needs, or at small scales of what a coefficient needs to grow.

    Returns:
        ``beta``.
    """
    network = implicit.diagonal_network(depth=depth)
    slow = np.linalg.eigvalsh(x @ x.T)[0]
    # A coefficient b moves with depth^2 (b^2)^((depth - 1) / depth), at least the
    # start's; those that are 1 in the end grow from the start, by log or power.
    lazy = 1 / (2 * depth**2 * scale ** (2 * depth - 2) * slow)
    rich = np.log(1 / scale) if depth == 2 else scale ** (2 - depth)
    time = patience * min(lazy, 1 + max(rich, 0.0))
    flow = implicit.gradient_flow(
        _loss(depth),
        network.init(x.shape[1], scale=scale),
        jnp.asarray(x),
        jnp.asarray(y),
        learning_rate=time,
        num_steps=1,
        max_substeps=1_000_000,
    )
    last = jax.tree.map(lambda leaf: leaf[-1], flow.path)
    return np.asarray(network.coefficients(last))


def basis_pursuit(x: Any, y: Any) -> np.ndarray:
    """The interpolation of least l1 norm, by linear programming."""
    d = x.shape[1]
    found = scipy.optimize.linprog(
        np.ones(2 * d), A_eq=np.hstack([x, -x]), b_eq=y, bounds=(0, None)
    )
    return found.x[:d] - found.x[d:]


def least_penalty(x: Any, y: Any, depth: int, scale: float) -> np.ndarray:
    """The interpolation of least closed-form penalty.

    Where the slope of `diagonal_network_penalty` is ``x^T nu``, for some ``nu`` found
    by Newton's method from large scales to small ones.
    """
    nu, unit = np.zeros(len(y)), None
    least = scale**depth
    top = max(10 * np.max(np.abs(np.linalg.pinv(x) @ y)), least)
    for unit in np.geomspace(
        top, least, max(2, int(np.ceil(6 * np.log10(top / least))) + 1)
    ):
        nu = _solve(x, y, depth, unit, nu)
    return unit * _h(x.T @ nu, depth)[0]


def _h(s, depth):
    """The inverse of the penalty's slope, its derivative, and whether it is defined."""
    if depth == 2:
        return 2 * np.sinh(s), 2 * np.cosh(s)
    power = depth / (depth - 2)
    up, down = (1 - s) ** -power, (1 + s) ** -power
    return up - down, power * (up / (1 - s) + down / (1 + s))


def _solve(x, y, depth, unit, nu):
    """Damped Newton steps on ``unit x h(x^T nu) = y``."""
    inside = lambda nu: depth == 2 or np.max(np.abs(x.T @ nu)) < 1
    miss = lambda nu: np.linalg.norm(unit * x @ _h(x.T @ nu, depth)[0] - y)
    for _ in range(100):
        value, slope = _h(x.T @ nu, depth)
        residual = unit * x @ value - y
        step = np.linalg.solve(unit * (x * slope) @ x.T, residual)
        size = 1.0
        while size > 1e-10 and not (
            inside(nu - size * step)
            and miss(nu - size * step) < np.linalg.norm(residual)
        ):
            size /= 2
        if size <= 1e-10:
            break
        nu = nu - size * step
    return nu
