"""Bounds from dimensions: the formulas, and sets whose coverings are known."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.bounds import (
    fractal_dimension,
    random_set_box,
    random_set_stability,
    sharpness_dimension,
)

BOTH = [fractal_dimension, sharpness_dimension]


@pytest.mark.parametrize("function", BOTH)
def test_formulas(function):
    shared: Any = dict(num_examples=400, loss_bound=2.0)
    other: Any = dict(scale=0.01, lipschitz=3.0, constants="published")
    bound = function(0.3, 1.5, **shared, **other)
    root = np.sqrt(4 * 1.5 * np.log(100) / 400)
    assert bound.complexity == pytest.approx(2 * 3 * 0.01 + 2 * 2 * root, rel=1e-12)
    assert bound.value == pytest.approx(0.3 + bound.complexity)
    assert not bound.certificate
    assert any("information term" in text for text in bound.assumptions)
    assert any("unknown C" in text for text in bound.assumptions)
    # Losses around B/2 halve the second term; the radius is 1/20 unless given.
    bound = function(0.3, 1.5, **shared)
    expected = 2 / 20 + 2 * np.sqrt(4 * 1.5 * np.log(20) / 400)
    assert bound.complexity == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dimension", [1, 2])
def test_is_above_the_rademacher_complexity_of_a_cube(dimension):
    # Losses t_1 on the first half of the examples and t_D on the second: within s of
    # one of at most (1 + 1/(2s))^D points, no more than s^(-2D) for s <= 0.6.
    n = 12
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    line = np.linspace(0, 1, 21)
    grid = np.array(list(itertools.product(line, repeat=dimension)))
    losses = grid[:, np.repeat(np.arange(n // 6) % dimension, 6)]
    exact = (signs @ losses.T / n).max(axis=1).mean()
    for scale in (0.05, 0.2, 0.5):
        bound = fractal_dimension(
            0.1, float(dimension), num_examples=n, loss_bound=1.0, scale=scale
        )
        assert 2 * exact < bound.complexity


def test_the_sharpness_dimension_of_a_network_is_vacuous():
    bound = sharpness_dimension(0.0, 12_960.0, num_examples=50_000, loss_bound=1.0)
    assert bound.vacuous


def test_box_form():
    shared: Any = dict(loss_bound=2.0, scale=0.01, lipschitz=3.0)
    shared |= dict(num_examples=1000)
    bound = random_set_box(0.1, 1e-4, 1.5, constants="published", **shared)
    root = 2 * np.sqrt(4 * 1.5 * np.log(100))
    expected = 2 * (2 / 1000 + 0.01 * 3 + 1e-4 ** (1 / 3) * (1 + root))
    assert bound.complexity == pytest.approx(expected, rel=1e-12)
    tight = random_set_box(0.1, 1e-4, 1.5, **shared)
    sizes = np.arange(1, 1001)
    best = np.min(root / np.sqrt(sizes) + 2e-4 * sizes) + 2 * 0.01 * 3
    assert best <= tight.complexity <= 1.001 * best < bound.complexity
    assert not tight.certificate
    # No more than all examples can be swapped.
    bound = random_set_box(0.1, 0.0, 1.5, constants="published", **shared)
    expected = 2 * (2 / 1000 + 0.01 * 3 + root / np.sqrt(1000))
    assert bound.complexity == pytest.approx(expected, rel=1e-12)


def test_monotone_and_without_dimension():
    gap = lambda d, n: (
        fractal_dimension(0.1, d, num_examples=n, loss_bound=1.0).complexity
    )
    assert gap(0.0, 100) == pytest.approx(2 / 10)
    assert gap(0.0, 100) < gap(1.0, 100) < gap(2.0, 100)
    assert gap(1.0, 10_000) < gap(1.0, 100)
    # One point of dimension 0: what is left is the price of a single swap.
    one = random_set_box(0.1, 1e-3, 0.0, num_examples=100, loss_bound=1.0)
    single = random_set_stability(
        0.1, 1e-3, num_examples=100, num_points=1, loss_bound=1.0
    )
    assert one.complexity == pytest.approx(single.complexity + 2 / 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dimension=-1.0), "`dimension` must be finite and at least 0"),
        (dict(dimension=np.nan), "`dimension` must be finite and at least 0"),
        (dict(dimension=np.inf), "`dimension` must be finite and at least 0"),
        (dict(scale=1.0), "`scale` must be a radius in"),
        (dict(scale=0.0), "`scale` must be a radius in"),
        (dict(lipschitz=0.0), "`lipschitz` must be positive"),
        (dict(constants="other"), "`constants` must be"),
        (dict(num_examples=1), "`num_examples` must be an integer of at least 2"),
        (dict(loss_bound=0.4), "`empirical_risk` must be between 0 and"),
    ],
)
def test_bad_input(user_land, arguments, message):
    good: Any = dict(dimension=1.0, num_examples=9, loss_bound=1.0) | arguments
    dimension = good.pop("dimension")
    for function in BOTH:
        with pytest.raises(ValueError, match=message):
            function(0.5, dimension, **good)
    with pytest.raises(ValueError, match=message):
        random_set_box(0.5, 1e-3, dimension, **good)


def test_tracers_are_refused(user_land):
    shared: Any = dict(num_examples=9, loss_bound=1.0)
    for function in BOTH:
        with pytest.raises(ValueError, match="`dimension` must be a concrete value"):
            jax.jit(lambda d, f=function: f(0.5, d, **shared).value)(jnp.ones(()))
