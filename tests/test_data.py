"""Data sets against their stated distributions, by quadrature and standard errors."""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from sklearn.datasets import load_digits

from jaxtheory import data

HERMITE = scipy.special.eval_hermitenorm
LINKS = {
    "he1": lambda z: z,
    "he2": lambda z: HERMITE(2, z) / math.sqrt(2),
    "he3": lambda z: HERMITE(3, z) / math.sqrt(6),
    "he4": lambda z: HERMITE(4, z) / math.sqrt(24),
    "relu": lambda z: math.sqrt(2) * np.maximum(z, 0),
    "abs": np.abs,
}


def _digits(**changes):
    return data.digits(**{"num_train": 300, "key": jax.random.key(0), **changes})


def _mixture(**changes):
    options = {"num_classes": 3, "dim": 5, "separation": 3.0, "noise": 1.5}
    return data.gaussian_mixture(**{**_common(), **options, **changes})


def _single_index(**changes):
    return data.single_index(**{**_common(), "dim": 6, **changes})


def _teacher(**changes):
    options = {**_common(), "input_shape": (2, 3), **changes}
    return data.teacher(_apply_fn, PARAMS, **options)


def _common() -> dict[str, Any]:
    return {"num_train": 40, "num_test": 30, "key": jax.random.key(0)}


PARAMS = np.arange(18.0, dtype=np.float32).reshape(6, 3) / 10 - 1


def _apply_fn(params, x):
    return jnp.matmul(jnp.reshape(x, (x.shape[0], -1)), params, precision="highest")


@pytest.fixture(scope="module")
def digits():
    return _digits()


def test_digits_are_split_and_standardised_by_training_images(digits):
    assert digits.x_train.shape == (300, 64)
    assert digits.x_test.shape == (1_497, 64)
    assert digits.y_train.dtype == digits.y_test.dtype == jnp.int32
    np.testing.assert_allclose(jnp.mean(digits.x_train), 0, atol=1e-6)
    np.testing.assert_allclose(jnp.std(digits.x_train), 1, atol=1e-6)
    raw: Any = load_digits()
    both = jnp.concatenate([digits.x_train, digits.x_test]) * digits.std + digits.mean
    pixels = np.rint(np.asarray(both))
    np.testing.assert_allclose(both, pixels, atol=1e-4)
    labels = jnp.concatenate([digits.y_train, digits.y_test])
    rows = np.concatenate([pixels, np.asarray(labels)[:, None]], 1)
    expected = np.concatenate([raw.data, raw.target[:, None]], 1)
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)]
    )


def test_digits_as_images_are_the_same_numbers(digits):
    images = _digits(image=True)
    assert images.x_train.shape == (300, 8, 8, 1)
    np.testing.assert_array_equal(images.x_test.reshape(-1, 64), digits.x_test)


def test_digits_depend_on_the_key_alone(digits):
    np.testing.assert_array_equal(_digits().x_train, digits.x_train)
    other = _digits(key=jax.random.key(1))
    assert bool(jnp.any(other.y_train != digits.y_train))


def test_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install \"jaxtheory\[data\]\""):
        _digits()


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (4, 3), (5, 9)])
def test_mixture_means_are_a_simplex(num_classes, dim):
    means = _mixture(num_classes=num_classes, dim=dim).means
    assert means.shape == (num_classes, dim)
    np.testing.assert_allclose(jnp.sum(means, 0), np.zeros(dim), atol=1e-5)
    distances = np.linalg.norm(np.asarray(means)[:, None] - np.asarray(means), axis=-1)
    expected = 3.0 * (1 - np.eye(num_classes))
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_mixture_orientation_is_uniform():
    """Each coordinate of a unit vector in 3 dimensions is uniform on [-1, 1]."""
    draw = lambda key: data.gaussian_mixture(
        num_classes=2, dim=3, num_train=1, num_test=1, separation=2.0, key=key
    ).means[0]
    keys = jax.random.split(jax.random.key(0), 500)
    means = np.asarray(jax.jit(jax.vmap(draw))(keys))
    for coordinate in means.T:
        uniform = scipy.stats.uniform(-1, 2)
        assert scipy.stats.kstest(coordinate, uniform.cdf).pvalue > 1e-3


def test_mixture_noise_and_labels_are_as_stated():
    mixture = _mixture(num_test=20_000)
    residuals = np.asarray(mixture.x_test - mixture.means[mixture.y_test]) / 1.5
    num = residuals.shape[0]
    np.testing.assert_allclose(residuals.mean(0), np.zeros(5), atol=4 / math.sqrt(num))
    covariance = residuals.T @ residuals / num
    atol = 4 * math.sqrt(2 / num)
    np.testing.assert_allclose(covariance, np.eye(5), atol=atol)
    frequencies = np.bincount(mixture.y_test, minlength=3) / num
    atol = 4 * math.sqrt(2 / 9 / num)
    np.testing.assert_allclose(frequencies, np.full(3, 1 / 3), atol=atol)


def test_mixture_bayes_error_is_what_the_nearest_mean_makes():
    mixture = _mixture(num_test=20_000)
    x, means = np.asarray(mixture.x_test), np.asarray(mixture.means)
    nearest = np.argmin(((x[:, None] - means) ** 2).sum(-1), 1)
    error = (nearest != np.asarray(mixture.y_test)).mean()
    expected = float(mixture.bayes_error)
    assert abs(error - expected) < 4 * math.sqrt(expected * (1 - expected) / len(x))


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("separation", [1.0, 12.0])
def test_mixture_bayes_error_by_quadrature(num_classes, separation):
    a = separation / math.sqrt(2)
    phi = scipy.stats.norm

    def wrong(t):
        return phi.pdf(t) * -np.expm1((num_classes - 1) * phi.logcdf(t + a))

    expected, _ = scipy.integrate.quad(
        wrong, -a - 12, 12, points=[-a / 2], epsabs=0, epsrel=1e-9
    )
    if num_classes == 2:
        closed_form = phi.cdf(-separation / 2)
        np.testing.assert_allclose(expected, closed_form, rtol=1e-8)
    problem = {"num_classes": num_classes, "dim": 9, "separation": separation}
    for x64, rtol in ((False, 1e-5), (True, 1e-8)):
        with jax.enable_x64(x64):
            error = _mixture(**problem, noise=1.0).bayes_error
        np.testing.assert_allclose(error, expected, rtol=rtol)


@pytest.mark.parametrize("link", LINKS)
def test_link_is_as_stated_with_its_information_exponent(link):
    g = LINKS[link]
    task = _single_index(link=link)
    z = np.asarray(task.x_train, float) @ np.asarray(task.direction, float)
    np.testing.assert_allclose(task.y_train[:, 0], g(z), atol=2e-5)

    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    mean = lambda values: np.sum(weights * values) / math.sqrt(2 * math.pi)
    assert abs(mean(g(nodes) ** 2) - 1) < 1e-10
    # Symmetric nodes keep zeros exact where the link has a kink.
    coefficients = [mean(g(nodes) * HERMITE(j, nodes)) for j in range(5)]
    nonzero = [j for j in range(1, 5) if abs(coefficients[j]) > 1e-10]
    assert nonzero[0] == task.information_exponent
    assert abs(coefficients[nonzero[0]]) > 0.5


def test_single_index_depends_on_one_direction_and_noise():
    task = _single_index(link="he2", noise=0.3, num_test=20_000)
    np.testing.assert_allclose(jnp.linalg.norm(task.direction), 1, rtol=1e-6)
    assert task.y_train.shape == (40, 1)
    z = np.asarray(task.x_test, float) @ np.asarray(task.direction, float)
    residuals = np.asarray(task.y_test)[:, 0] - (z**2 - 1) / math.sqrt(2)
    num = len(residuals)
    assert abs(residuals.mean()) < 4 * 0.3 / math.sqrt(num)
    assert abs(residuals.std() / 0.3 - 1) < 4 / math.sqrt(2 * num)


def test_teacher_outputs_and_classes():
    clean = _teacher()
    np.testing.assert_allclose(
        clean.y_test, np.asarray(clean.x_test).reshape(30, 6) @ PARAMS, atol=1e-5
    )
    classes = _teacher(targets="classes")
    np.testing.assert_array_equal(classes.y_train, jnp.argmax(clean.y_train, 1))
    assert classes.y_train.dtype == jnp.int32
    noisy = _teacher(noise=0.5, num_test=10_000)
    residuals = np.asarray(noisy.y_test - _apply_fn(PARAMS, noisy.x_test)) / 0.5
    assert abs(residuals.mean()) < 4 / math.sqrt(30_000)
    assert abs(residuals.std() - 1) < 4 / math.sqrt(60_000)


@pytest.mark.parametrize("draw", [_mixture, _single_index, _teacher])
def test_draws_repeat_and_test_data_are_their_own(draw):
    one, same = draw(), draw()
    jax.tree.map(np.testing.assert_array_equal, one, same)
    smaller = draw(num_train=10)
    np.testing.assert_array_equal(smaller.x_test, one.x_test)
    np.testing.assert_array_equal(smaller.y_test, one.y_test)
    other = draw(key=jax.random.key(1))
    assert bool(jnp.all(other.x_train != one.x_train))
    values = np.concatenate([one.x_train.ravel(), one.x_test.ravel()])
    assert len(np.unique(values)) == len(values)


def test_draws_under_jit_and_double_precision(x64):
    eager = _single_index(noise=0.1)
    assert eager.x_train.dtype == eager.y_train.dtype == jnp.float64
    jitted = jax.jit(lambda key: _single_index(key=key, noise=0.1)[:4])(
        jax.random.key(0)
    )
    for one, two in zip(eager[:4], jitted, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-12)
    error = jax.jit(lambda s: _mixture(num_classes=2, separation=s).bayes_error)
    exact = scipy.stats.norm.cdf(-3.0 / 1.5 / 2)
    np.testing.assert_allclose(error(jnp.asarray(3.0)), exact, rtol=1e-12)
    assert _digits().x_train.dtype == jnp.float64


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _digits(num_train=0), "`num_train` must be an integer"),
        (lambda: _digits(num_train=1_797), "must leave test images"),
        (lambda: _mixture(num_classes=1), "`num_classes` must be an integer of at"),
        (lambda: _mixture(num_test=0), "`num_test` must be an integer of at least 1"),
        (lambda: _mixture(dim=1), "`dim` must be at least `num_classes - 1`"),
        (lambda: _mixture(separation=-1.0), "`separation` must be non-negative"),
        (lambda: _mixture(noise=0.0), "`noise` must be positive, but was 0.0"),
        (lambda: _mixture(noise=jnp.array(-1.0)), "`noise` must be positive"),
        (lambda: _mixture(separation=np.inf), "`separation` must be non-negative"),
        (lambda: _single_index(noise=jnp.ones(2)), r"`noise` .* shape \(2,\)"),
        (lambda: _single_index(link=["relu"]), "`link` must be one of"),
        (lambda: _single_index(dim=0), "`dim` must be an integer of at least 1"),
        (lambda: _single_index(num_train=2.5), "`num_train` must be an integer"),
        (lambda: _single_index(link="he9"), "`link` must be one of 'he1', 'he2'"),
        (lambda: _single_index(noise=-0.1), "`noise` must be non-negative"),
        (lambda: _teacher(num_train=True), "`num_train` must be an integer"),
        (lambda: _teacher(noise=-0.1), "`noise` must be non-negative"),
        (lambda: _teacher(targets="labels"), '`targets` must be "outputs" or'),
        (
            lambda: data.teacher(
                lambda p, x: x[:, 0],
                (),
                input_shape=(2,),
                num_train=3,
                num_test=3,
                key=jax.random.key(0),
            ),
            r"`apply_fn` must return outputs \[n, k\]",
        ),
    ],
)
def test_bad_input_is_named(user_land, build, message):
    with pytest.raises(ValueError, match=message):
        build()
