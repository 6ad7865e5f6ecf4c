"""The kernel bound: its published figures, another way to compute it, and whether it
holds for the predictor that it is about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.bounds import ntk_complexity
from jaxtheory.bounds._norms_margins import grid_up


def arccos(a, b):
    """Kernel of the first layer of a ReLU network with one hidden layer."""
    cosines = np.clip(a @ b.T, -1, 1)
    return cosines * (np.pi - np.arccos(cosines)) / (2 * np.pi)


def sphere(rng, n, d):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_simple_labels_have_small_complexity():
    # Measured over 10 seeds: .1395 +- .0001, 2.28 +- .07 and 3.76 +- .04 (deviations).
    n, d, found, vacuous = 400, 20, [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, w = sphere(rng, n, d), sphere(rng, 1, d)[0]
        labels = x @ w, np.sign(x @ w), rng.choice([-1.0, 1.0], n)
        kernel = arccos(x, x)
        bounds = [ntk_complexity(kernel, y, delta=0.05) for y in labels]
        found.append([bound.complexity for bound in bounds])
        vacuous.append([bound.vacuous for bound in bounds])
    linear, sign, random = np.mean(found, axis=0)
    assert linear <= 3 * np.sqrt(2) / np.sqrt(n)
    assert abs(linear - 0.139) < 0.001
    assert abs(sign - 2.24) < 4 * 0.073
    assert abs(random - 3.68) < 4 * 0.038
    assert vacuous == [[False, True, True]] * 3


def test_is_the_published_term_and_counts_columns():
    rng = np.random.default_rng(0)
    x = sphere(rng, 50, 5)
    kernel, y = arccos(x, x), rng.normal(size=(50, 3))
    squares = [c @ np.linalg.solve(kernel, c) for c in y.T]
    one = ntk_complexity(kernel, y[:, 0], delta=0.05)
    assert one.complexity == pytest.approx(np.sqrt(2 * squares[0] / 50), rel=1e-9)
    all_three = ntk_complexity(kernel, y, delta=0.05)
    expected = np.sqrt(6) * np.sqrt(2 * sum(squares) / 50)
    assert all_three.complexity == pytest.approx(expected, rel=1e-9)
    limit, price = grid_up(np.sqrt(squares[0]))
    deviation = 3 * np.sqrt((np.log(2 / 0.05) + price) / 100)
    assert one.value == pytest.approx(np.sqrt(2 / 50) * limit + deviation, rel=1e-9)
    assert not one.certificate


def test_does_not_see_the_scale_of_the_kernel_and_says_how_well_it_is_conditioned():
    x = sphere(np.random.default_rng(1), 30, 5)
    kernel, y = arccos(x, x), x[:, 0]
    bounds = [
        ntk_complexity(scale * kernel, y, delta=0.05).complexity for scale in (1, 1e-4)
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    single = ntk_complexity(jnp.asarray(kernel, jnp.float32), y, delta=0.05)
    assert single.complexity == pytest.approx(bounds[0], rel=1e-3)
    values = np.linalg.eigvalsh(kernel)
    text = f"eigenvalue is {values[0]:.3g}, the condition number"
    exact = ntk_complexity(kernel, y, delta=0.05)
    assert any(text in one for one in exact.assumptions)
    assert any(f"{values[-1] / values[0]:.3g}" in one for one in exact.assumptions)


@pytest.mark.parametrize("noisy", [False, True])
def test_holds_for_the_kernel_predictor(noisy):
    rng, n, margins = np.random.default_rng(2), 100, []
    for _ in range(15):
        x, fresh = sphere(rng, n, 4), sphere(rng, 400, 4)
        target = lambda z: 0.5 * z[:, 0] * (not noisy)
        noise = lambda size: noisy * 0.3 * rng.choice([-1.0, 1.0], size)
        y = target(x) + noise(n)
        bound = ntk_complexity(arccos(x, x), y, delta=0.05)
        outputs = arccos(fresh, x) @ np.linalg.solve(arccos(x, x), y)
        losses = np.minimum(np.abs(outputs - target(fresh) - noise(400)), 1)
        margins.append(bound.value - losses.mean())
        # What is left without the complexity is below the truth where there is noise.
        assert not noisy or losses.mean() > np.sqrt(np.log(1 / 0.05) / (2 * n))
    assert min(margins) > 0


K, ONES = np.eye(4), np.ones(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.ones((4, 3)), ONES),
            r"`kernel` must be a floating-point matrix.*\(4, 3\)",
        ),
        ((np.ones((4, 4, 2, 2)), ONES), r"`kernel` must be a.*outputs='trace'"),
        ((np.eye(4, dtype=int), ONES), r"`kernel` must be a floating-point.*int64"),
        ((K, ONES * 1j), r"`y` must be real numbers.*complex128"),
        ((K, ONES > 0), r"`y` must be real numbers.*bool.*1 and -1"),
        ((1e200 * K, 1e308 * ONES), r"`kernel` and `y` must be in a range"),
        ((1e-200 * K, 1e250 * ONES), r"`kernel` and `y` must be in a range"),
        ((K, np.ones(3)), r"`y` must have shape \[4\] or \[4, k\].*\(3,\)"),
        ((K * np.nan, ONES), r"`kernel` and `y` must be finite"),
        ((K + np.triu(np.ones((4, 4))), ONES), r"`kernel` must be symmetric"),
        ((np.ones((4, 4)), ONES), r"`kernel` must be positive definite.*repeated"),
        ((np.zeros((4, 4)), ONES), r"`kernel` must be positive definite"),
        ((-K, ONES), r"`kernel` must be positive definite"),
    ],
)
def test_bad_input_names_the_fix(arguments, message, user_land):
    with pytest.raises(ValueError, match=message):
        ntk_complexity(*arguments, delta=0.05)


def test_tiny_targets_have_a_complexity():
    # Their squares are below the smallest number.
    y = np.full(400, 1e-170)
    found = ntk_complexity(np.eye(400) * 1e-300, y, delta=0.05)
    assert found.complexity == pytest.approx(2e-170, rel=1e-12)


def test_delta_and_values(user_land):
    with pytest.raises(ValueError, match=r"`delta` must be strictly between 0 and 1"):
        ntk_complexity(K, ONES, delta=1.0)
    with pytest.raises(ValueError, match=r"`kernel` must be a concrete value"):
        jax.jit(lambda k: ntk_complexity(k, ONES, delta=0.1).value)(jnp.eye(4))
