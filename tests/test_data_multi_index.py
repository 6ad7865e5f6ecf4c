"""Tasks of a few directions against NumPy polynomials, quadrature, brute force."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxtheory import data

HERMITE = lambda m, z: (
    scipy.special.eval_hermitenorm(m, z) / math.sqrt(math.factorial(m))
)


def common(**changes) -> dict[str, Any]:
    sizes = {"dim": 6, "num_train": 40, "num_test": 30, "key": jax.random.key(0)}
    return {**sizes, **changes}


def multi_index(**changes):
    return data.multi_index(**common(**changes))


def expected_targets(task, terms, coefficients):
    z = np.asarray(task.x_train, float) @ np.asarray(task.directions, float)
    products = [
        np.prod([HERMITE(m, z[:, j]) for j, m in enumerate(term)], axis=0)
        for term in terms
    ]
    return np.stack(products, 1) @ np.asarray(coefficients, float).T


def test_multi_index_is_as_stated():
    terms = ((2, 0), (1, 1), (0, 4))
    coefficients = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0]])
    task = multi_index(terms=terms, coefficients=coefficients)
    expected = expected_targets(task, terms, coefficients)
    np.testing.assert_allclose(task.y_train, expected, atol=2e-4)
    gram = task.directions.T @ task.directions
    np.testing.assert_allclose(gram, np.eye(2), atol=1e-5)
    assert (task.information_exponent, task.leap) == (2, 2)
    one = multi_index(terms=terms)
    expected = expected_targets(one, terms, np.full((1, 3), 3**-0.5))
    np.testing.assert_allclose(one.y_train, expected, atol=2e-4)


def test_multi_index_targets_have_unit_variance_and_noise_adds():
    task = multi_index(terms=((1, 2), (1, 0)), num_test=40_000, noise=0.5)
    y = np.asarray(task.y_test, float)[:, 0]
    second = y**2
    error = second.std() / math.sqrt(len(y))
    assert abs(second.mean() - 1.25) < 4 * error
    assert abs(y.mean()) < 4 * y.std() / math.sqrt(len(y))


def test_another_task_of_the_same_subspace_under_another_covariance():
    first = multi_index()
    shift = np.diag([4.0, 1, 1, 1, 1, 0.25]) + 0.1
    second = multi_index(
        terms=((3, 0), (0, 1)),
        directions=first.directions,
        covariance=jnp.asarray(shift, jnp.float32),
        num_train=20_000,
        key=jax.random.key(1),
    )
    np.testing.assert_array_equal(second.directions, first.directions)
    x = np.asarray(second.x_train, float)
    # Standard error of a covariance of Gaussians: at most sqrt(2) s_i s_j / sqrt(n).
    scale = np.sqrt(np.outer(np.diag(shift), np.diag(shift)))
    assert np.all(np.abs(x.T @ x / len(x) - shift) < 5 * scale * math.sqrt(2 / len(x)))
    expected = expected_targets(second, ((3, 0), (0, 1)), np.full((1, 2), 2**-0.5))
    np.testing.assert_allclose(second.y_train, expected, rtol=1e-3, atol=2e-3)


def test_parity():
    task = data.sparse_parity(**common(degree=3))
    x = np.asarray(task.x_train)
    assert set(np.unique(x)) == {-1.0, 1.0}
    support = np.asarray(task.support)
    assert len(set(support)) == 3
    np.testing.assert_array_equal(x[:, support].prod(1), task.y_train[:, 0])
    np.testing.assert_array_equal(x @ np.asarray(task.directions), x[:, support])
    assert (task.information_exponent, task.leap) == (3, 3)
    many = data.sparse_parity(**common(degree=2, noise=0.1, num_test=10_000))
    clean = many.x_test[:, many.support].prod(1)
    flipped = float(jnp.mean(clean != many.y_test[:, 0]))
    assert abs(flipped - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 10_000)


def test_staircase():
    task = data.staircase(**common())
    z = np.asarray(task.x_train)[:, np.asarray(task.support)]
    expected = z[:, 0] + z[:, 0] * z[:, 1] + z.prod(1)
    np.testing.assert_array_equal(task.y_train[:, 0], expected)
    assert (task.information_exponent, task.leap) == (1, 1)
    task = data.staircase(**common(terms=((0, 1, 1), (1, 1, 1)), noise=0.3))
    z = np.asarray(task.x_train)[:, np.asarray(task.support)]
    left = np.asarray(task.y_train)[:, 0] - z[:, 1] * z[:, 2] - z.prod(1)
    assert 0.15 < left.std() < 0.45
    assert (task.information_exponent, task.leap) == (2, 2)


def leap_by_brute_force(terms):
    """The definition: the best over all orders."""
    best = math.inf
    for order in itertools.permutations(terms):
        known: set[int] = set()
        worst = 0
        for term in order:
            new = [m for j, m in enumerate(term) if j not in known]
            worst = max(worst, sum(new))
            known |= {j for j, m in enumerate(term) if m}
        best = min(best, worst)
    return best


def test_leap_is_the_best_over_all_orders():
    rng = np.random.default_rng(0)
    for _ in range(50):
        terms = rng.integers(0, 3, (4, 4)).tolist()
        terms = [term for term in terms if any(term)]
        assert data.leap(terms) == leap_by_brute_force(terms)
    assert data.leap([(0, 0), (1, 3)]) == 4


def test_hermite_coefficients_by_closed_form():
    found = data.hermite_coefficients(lambda z: z**4, max_degree=6)
    expected = [3, 0, 6 * math.sqrt(2), 0, math.sqrt(24), 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-10)
    # E exp(tz) He_j(z) = t^j exp(t^2 / 2); through JAX, in double precision too.
    found = data.hermite_coefficients(lambda z: jnp.exp(0.5 * z), max_degree=4)
    expected = [
        0.5**j * math.exp(0.125) / math.sqrt(math.factorial(j)) for j in range(5)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # E relu(z) z = 1/2, to the error of a kink; c_3 = 0 by symmetry of relu - z/2.
    found = data.hermite_coefficients(jax.nn.relu, max_degree=3)
    np.testing.assert_allclose(found[0], 1 / math.sqrt(2 * math.pi), atol=1e-2)
    np.testing.assert_allclose(found[[1, 3]], [0.5, 0], atol=1e-10)


@pytest.mark.parametrize(
    ("link", "exponent"),
    [
        (np.tanh, 1),
        (jax.nn.relu, 1),
        (jnp.cos, 2),
        (lambda z: np.sign(z) * (z**2 > 1), 1),
        (lambda z: z**4 - 6 * z**2, 4),
        (lambda z: np.maximum(z, 0) - z / 2, 2),
        # The third coefficient of He_5 plus a trace of He_3 is below the tolerance.
        (lambda z: HERMITE(5, z) + 1e-4 * HERMITE(3, z), 5),
        (lambda z: 2.0 + 0 * z, None),
    ],
)
def test_information_exponent(link, exponent):
    assert data.information_exponent(link) == exponent


@pytest.mark.parametrize("link", ["he1", "he2", "he3", "he4", "relu", "abs"])
def test_information_exponents_of_single_index_tasks(link):
    task = data.single_index(**common(link=link, dim=1, num_train=200))
    flip = task.direction[0]  # one dimension: the link itself, up to sign
    order = jnp.argsort(task.x_train[:, 0])
    z, y = flip * task.x_train[order, 0], task.y_train[order, 0]
    by_name = {
        **{f"he{m}": (lambda z, m=m: HERMITE(m, z)) for m in range(1, 5)},
        "relu": lambda z: math.sqrt(2) * np.maximum(z, 0),
        "abs": np.abs,
    }[link]
    np.testing.assert_allclose(by_name(np.asarray(z, float)), y, atol=1e-3)
    assert data.information_exponent(by_name) == task.information_exponent


@pytest.mark.parametrize("name", ["multi_index", "sparse_parity", "staircase"])
def test_draws_repeat_and_test_data_are_their_own(name):
    options = {"degree": 2} if name == "sparse_parity" else {}
    draw = lambda **changes: getattr(data, name)(**common(**options, **changes))
    one, same = draw(), draw()
    jax.tree.map(np.testing.assert_array_equal, one, same)
    smaller = draw(num_train=10)
    np.testing.assert_array_equal(smaller.x_test, one.x_test)
    other = draw(key=jax.random.key(1))
    assert bool(jnp.any(other.x_train != one.x_train))
    jitted = jax.jit(lambda key: draw(key=key)[:5])(jax.random.key(0))
    for value, expected in zip(jitted, one, strict=False):
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_in_double_precision(x64):
    task = multi_index(terms=((3, 1),), covariance=2 * jnp.eye(6))
    assert task.x_train.dtype == task.y_train.dtype == jnp.float64
    expected = expected_targets(task, ((3, 1),), np.ones((1, 1)))
    np.testing.assert_allclose(task.y_train, expected, rtol=1e-10, atol=1e-10)
    assert data.staircase(**common()).y_train.dtype == jnp.float64


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: multi_index(dim=0), "`dim` must be an integer of at least 1"),
        (lambda: multi_index(dim=1), "`dim` must be at least the 2 hidden coord"),
        (lambda: multi_index(terms=()), "`terms` must be tuples of degrees"),
        (lambda: multi_index(terms=((0, 0),)), "`terms` must be tuples of degrees"),
        (lambda: multi_index(terms=((1,), (1, 2))), "`terms` must be tuples of degr"),
        (lambda: multi_index(terms=((-1, 2),)), "`terms` must be tuples of degrees"),
        (lambda: multi_index(noise=-1.0), "`noise` must be non-negative"),
        (
            lambda: multi_index(coefficients=jnp.ones((2, 3))),
            r"`coefficients` must have shape \[k, 1\], but has \(2, 3\)",
        ),
        (
            lambda: multi_index(directions=jnp.ones((6, 2))),
            "`directions` must be orthonormal columns",
        ),
        (
            lambda: multi_index(covariance=jnp.ones((6, 5))),
            r"`covariance` must have shape \[6, 6\]",
        ),
        (
            lambda: multi_index(covariance=-jnp.eye(6)),
            "`covariance` must be symmetric and positive definite",
        ),
        (
            lambda: multi_index(covariance=jnp.eye(6).at[0, 1].set(0.5)),
            "`covariance` must be symmetric and positive definite",
        ),
        (
            lambda: multi_index(coefficients=[[1.0]]),
            "`coefficients` must be an array of real numbers, but is a list",
        ),
        (
            lambda: multi_index(coefficients=jnp.ones((1, 1)) * 1j),
            "`coefficients` must be an array of real .* dtype complex64",
        ),
        (lambda: multi_index(terms=(1, 2)), "`terms` must be tuples of degrees"),
        (lambda: multi_index(terms=((True,),)), "`terms` must be tuples of degrees"),
        (lambda: multi_index(noise=jnp.ones(2)), r"`noise` .* shape \(2,\)"),
        (
            lambda: data.sparse_parity(**common(degree=2, noise=1.5)),
            "`noise` must be non-negative and at most 1, but was 1.5",
        ),
        (lambda: data.hermite_coefficients(lambda z: 1j * z), "`link` must be real"),
        (
            lambda: data.sparse_parity(**common(degree=7)),
            "`dim` must be at least the 7",
        ),
        (lambda: data.sparse_parity(**common(degree=0)), "`degree` must be an integer"),
        (
            lambda: data.staircase(**common(terms=((2, 0),))),
            "`terms` must be of zeros and ones",
        ),
        (
            lambda: data.hermite_coefficients(np.abs, max_degree=9, num_nodes=9),
            r"`num_nodes` must be above `max_degree` \(9\)",
        ),
        (lambda: data.hermite_coefficients(np.sum), "`link` must be elementwise"),
        (
            lambda: data.hermite_coefficients(lambda z: z + np.inf),
            "`link` must be finite",
        ),
        (
            lambda: data.information_exponent(np.abs, tolerance=0.0),
            "`tolerance` must be between 0 and 1",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
