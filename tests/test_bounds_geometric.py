"""The bound of few shots by geometric complexity: equality, simulation, few-shot's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import collapse
from jaxtheory.bounds import few_shot, geometric_few_shot

SPREAD = (
    0.1  # standard deviation of the inputs of a class, Poincare constant its square
)
LABELS = np.repeat([0, 1, 3], 400)
CENTRES = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [9, 9, 9, 9], [0, 0, 1, -1]])


def draw(rng, labels):
    return CENTRES[labels] + SPREAD * rng.normal(size=(len(labels), 4))


def network(weight, x):
    return jnp.tanh(x @ weight)


@pytest.fixture(scope="module")
def problem():
    """Weights, inputs, features and complexities of a network of one layer."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    x = jnp.asarray(draw(rng, LABELS), jnp.float32)
    found = collapse.geometric_complexity(
        network, weight, x, labels=jnp.asarray(LABELS), batch_size=500
    )
    return weight, network(weight, x), found.value


@pytest.mark.parametrize("shots", [1, 4, None])
def test_matches_loops_and_holds_for_simulated_shots(problem, shots):
    weight, features, complexities = problem
    bound = geometric_few_shot(
        complexities, features, LABELS, shots, poincare_constant=SPREAD**2
    )
    h = np.asarray(features, np.float64)
    means = {c: h[c == LABELS].mean(0) for c in (0, 1, 3)}
    total = 0.0
    for i in means:
        for j in means:
            if i != j:
                a, b = SPREAD * np.sqrt(np.asarray(complexities, float)[[i, j]])
                error = 0 if shots is None else (a + b) / np.sqrt(shots)
                ratio = (2 * a + error) / np.linalg.norm(means[i] - means[j])
                total += min(1, ratio**2) / 3
    np.testing.assert_allclose(bound.value, total, rtol=1e-6)
    assert not bound.certificate
    assert 0 < bound.value < 1

    rng, wrong = np.random.default_rng(1), 0
    for _ in range(300):
        centres = np.stack(
            [
                np.tanh(draw(rng, np.repeat(c, shots or 500)) @ weight).mean(0)
                for c in (0, 1, 3)
            ]
        )
        x = np.tanh(draw(rng, np.array([0, 1, 3])) @ weight)
        nearest = np.argmin(((x[:, None] - centres[None]) ** 2).sum(-1), axis=1)
        wrong += np.mean(nearest != np.arange(3)) / 300
    assert wrong <= bound.value


def test_complexity_limits_the_variance_of_features(problem):
    _, features, complexities = problem
    h = np.asarray(features)
    for c in (0, 1, 3):
        variance = h[c == LABELS].var(axis=0).sum()
        # Of tanh near its linear part the limit is nearly reached.
        assert 0.5 < variance / (SPREAD**2 * complexities[c]) < 1.05


def test_linear_features_of_gaussian_inputs_reach_the_limit():
    # There v = c GC, and known means leave Chebyshev's bound by the total variance.
    off = lambda value: jnp.array([[jnp.nan, value], [value, jnp.nan]])
    variance = 20 * 0.1**2
    moments = collapse.PairMoments(
        *(off(v) for v in (variance, 0.01, 0.1, 0.0)), jnp.array([1, 1]), jnp.array(0)
    )
    complexity = collapse.geometric_complexity(
        lambda w, x: x @ w, jnp.eye(20), jnp.ones((2, 20)), labels=jnp.arange(2)
    )
    known = geometric_few_shot(
        complexity.value,
        jnp.eye(2, 20) / 2**0.5,
        jnp.arange(2),
        None,
        poincare_constant=0.01,
    )
    expected = few_shot(moments, None, axis_variance="total").value
    np.testing.assert_allclose(known.value, expected, rtol=1e-6)
    assert known.complexity == 0


def test_coinciding_means_are_vacuous():
    found = geometric_few_shot(
        jnp.zeros(2), jnp.ones((4, 3)), jnp.arange(4) % 2, 3, poincare_constant=1.0
    )
    assert (found.value, found.vacuous) == (1.0, True)


H, Y, G = jnp.ones((6, 2)), jnp.arange(6) % 2, jnp.ones(2)


@pytest.mark.parametrize(
    ("arguments", "constant", "message"),
    [
        ((G, H, Y, 0), 1.0, r"`num_shots` must be an integer of at least 1"),
        ((G, H, Y, 3), -1.0, r"`poincare_constant` must be positive, but was -1.0"),
        ((G, H[:, 0], Y, 3), 1.0, r"`features` must have shape \[n, d\].*\(6,\)"),
        ((G, H, Y + 1, 3), 1.0, r"`labels` must be a vector of integers in \[0, 2\)"),
        ((G, H, 0 * Y, 3), 1.0, r"`labels` must hold at least two classes"),
        ((-G, H, Y, 3), 1.0, r"`complexities` finite and not negative"),
        ((G, H, Y[:4], 3), 1.0, r"`labels` must have as many examples"),
    ],
)
def test_bad_input_names_the_fix(arguments, constant, message, user_land):
    with pytest.raises(ValueError, match=message):
        geometric_few_shot(*arguments, poincare_constant=constant)


def test_traced_values_are_refused(user_land):
    with pytest.raises(ValueError, match=r"`complexities` must be a concrete value"):
        jax.jit(lambda g: geometric_few_shot(g, H, Y, 3, poincare_constant=1.0))(G)
