"""Largest margins: optimality by duality, and the directions that training takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import implicit

ORDER = {"l2": 2, "linf": np.inf, "l1": 1}
DUAL = {"l2": 2, "linf": 1, "l1": np.inf}


def linear(w, x):
    return x @ w


def logistic(outputs, y):
    return jax.nn.softplus(-y * outputs)


def problem(seed=0, n=20, d=4):
    """Points on both sides of a plane, with a gap."""
    rng = np.random.default_rng(seed)
    truth = np.array([1.0, 2.0, -0.5, 0.3])[:d]
    x = rng.normal(size=(n, d))
    y = np.sign(x @ truth)
    return x + 0.3 * y[:, None] * truth, y


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_margins_are_optimal_by_duality(norm):
    # Any mixture of the examples bounds the margin by its dual norm: where the two
    # meet, both are optimal. Nothing of the solvers is used.
    x, y = problem()
    got = implicit.max_margin(x, y, norm=norm)
    assert got.separable
    assert got.converged
    np.testing.assert_allclose(np.linalg.norm(got.direction, ORDER[norm]), 1)
    np.testing.assert_allclose(got.margin, np.min(y * (x @ got.direction)))
    assert got.dual.min() >= 0
    np.testing.assert_allclose(got.dual.sum(), 1)
    bound = np.linalg.norm((y * got.dual) @ x, DUAL[norm])
    np.testing.assert_allclose(bound, got.margin, rtol=1e-8)
    np.testing.assert_allclose(got.gap, bound - got.margin, atol=1e-12)
    # Support vectors alone carry weight.
    slack = y * (x @ got.direction) - got.margin
    assert np.abs(got.dual * slack).max() < 1e-8
    # In other units of the data, however far from 1, it is the same direction.
    for unit in (1e-12, 1e12):
        scaled = implicit.max_margin(x * unit, y, norm=norm)
        assert scaled.separable
        assert scaled.converged
        np.testing.assert_allclose(scaled.direction, got.direction, atol=1e-7)


def test_classes_are_optimal_by_duality():
    rng = np.random.default_rng(1)
    y = np.arange(15) % 3
    x = rng.normal(size=(15, 4)) + 4 * np.eye(3, 4)[y]
    for norm in ("l2", "linf", "l1"):
        got = implicit.max_margin(x, y, norm=norm, num_classes=3)
        assert got.separable
        assert got.converged
        assert got.direction.shape == (4, 3)
        assert got.dual.shape == (15, 2)
        scores = x @ got.direction
        own = scores[np.arange(15), y]
        scores[np.arange(15), y] = -np.inf
        np.testing.assert_allclose(got.margin, np.min(own - scores.max(1)))
        mixture = np.zeros((4, 3))
        for i in range(15):
            for weight, c in zip(
                got.dual[i], [c for c in range(3) if c != y[i]], strict=True
            ):
                mixture[:, y[i]] += weight * x[i]
                mixture[:, c] -= weight * x[i]
        bound = np.linalg.norm(mixture.ravel(), DUAL[norm])
        np.testing.assert_allclose(bound, got.margin, rtol=1e-7)


def test_two_classes_are_the_binary_problem():
    x, y = problem()
    binary = implicit.max_margin(x, y)
    classes = implicit.max_margin(x, (y > 0).astype(int), num_classes=2)
    # w_1 = -w_0 = w / sqrt 2 is the most that norm 1 allows.
    np.testing.assert_allclose(
        classes.direction[:, 1], binary.direction / 2**0.5, atol=1e-7
    )
    np.testing.assert_allclose(classes.margin, binary.margin * 2**0.5)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_what_cannot_be_separated_is_flagged(norm):
    x, y = problem()
    y[0] *= -1  # one point on the wrong side
    for labels in (y, np.where(y > 0, 1, 1)):
        got = implicit.max_margin(x, labels, norm=norm)
        assert not got.separable
        assert got.margin == 0
        assert not got.direction.any()
        assert got.converged
    # The same point with both labels: the margin is exactly zero.
    got = implicit.max_margin(np.ones((2, 1)), np.array([1, -1]), norm=norm)
    assert not got.separable


def trained(optimizer, num_steps):
    """The direction that training on the logistic loss has taken."""
    x, y = problem()
    data = jnp.asarray(x), jnp.asarray(y)
    history = dynamics.train(
        dynamics.supervised(linear, logistic),
        dynamics.init(optimizer, jnp.zeros(4)),
        optimizer,
        data,
        num_steps=num_steps,
        record_every=num_steps,
        key=jax.random.key(0),
        progress=False,
    )
    return np.asarray(history.state.params), x, y


def normalised_descent(learning_rate):
    """Gradient descent with steps over the norm of the gradient."""
    # Which becomes exponentially small: the default `eps` would stop the normalising.
    normalise = optax.normalize_by_update_norm(eps=1e-300)
    return optax.chain(normalise, optax.scale(-learning_rate))


def test_gradient_descent_goes_to_the_l2_margin(x64):
    x, y = problem()
    best = implicit.max_margin(x, y, norm="l2")
    angles = {}
    for name, optimizer in (
        ("plain", optax.sgd(0.5)),
        ("normalised", normalised_descent(0.05)),
    ):
        w, _, _ = trained(optimizer, 4000)
        w = w / np.linalg.norm(w)
        angles[name] = np.arccos(min(1.0, w @ best.direction))
        margin = np.min(y * (x @ w))
        assert margin <= best.margin + 1e-12
        if name == "normalised":
            assert margin > 0.995 * best.margin
    assert angles["normalised"] < 0.01
    assert angles["normalised"] < 0.2 * angles["plain"]
    # Not any margin: that of another norm is elsewhere.
    other = implicit.max_margin(x, y, norm="linf").direction
    assert np.arccos(other @ best.direction / np.linalg.norm(other)) > 0.1


def test_sign_descent_goes_to_the_linf_margin(x64):
    w, x, y = trained(optax.sign_sgd(0.01), 4000)
    best = implicit.max_margin(x, y, norm="linf")
    margin = np.min(y * (x @ w)) / np.max(np.abs(w))
    assert 0.99 * best.margin < margin <= best.margin + 1e-12
    # In that norm it beats the direction of gradient descent.
    plain = implicit.max_margin(x, y, norm="l2").direction
    assert margin > 1.02 * np.min(y * (x @ plain)) / np.max(np.abs(plain))


def test_coordinate_descent_goes_to_the_l1_margin():
    # Boosting: the coordinate of the largest slope of the exponential loss, by a step
    # that is small and does not vanish.
    x, y = problem()
    w, rows = np.zeros(4), y[:, None] * x
    for _ in range(20_000):
        weights = np.exp(-(rows @ w - np.min(rows @ w)))
        slope = weights @ rows / weights.sum()
        best = np.argmax(np.abs(slope))
        w[best] += 1e-2 * np.sign(slope[best])
    margin = np.min(rows @ w) / np.sum(np.abs(w))
    expected = implicit.max_margin(x, y, norm="l1").margin
    assert 0.99 * expected < margin <= expected + 1e-12


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"norm": "l3"}, "`norm` must be one of"),
        ({"x": np.ones(3)}, r"`x` must be \[n, d\]"),
        ({"y": np.ones(2)}, r"`x` must be \[n, d\]"),
        ({"x": np.full((3, 2), np.nan)}, "`x` must be finite"),
        ({"x": np.zeros((3, 2))}, "`x` must be finite, and not all zero"),
        ({"x": np.ones((3, 2)) * 1j}, "`x` must hold real numbers"),
        ({"y": np.array([0, 1, 1])}, "`y` must hold 1 and -1"),
        ({"y": np.array([1, -1, 1]), "num_classes": 2}, "`y` must hold whole numbers"),
        ({"num_classes": 1}, "`num_classes` must be an integer of at least 2"),
    ],
)
def test_bad_margins(user_land, change, match):
    given: Any = {"x": np.ones((3, 2)), "y": np.array([1, -1, 1])}
    with pytest.raises(ValueError, match=match):
        implicit.max_margin(**{**given, **change})


def test_margins_are_of_the_host(user_land):
    with pytest.raises(ValueError, match="are traced"):
        jax.jit(lambda x: implicit.max_margin(x, np.ones(3)).margin)(jnp.ones((3, 2)))
