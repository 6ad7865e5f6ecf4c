"""Ensembles and posteriors against linear models, conditioning and trained networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxtheory.kernels import predict

N, M, K, P = 6, 4, 2, 9


class Pair(NamedTuple):
    nngp: jax.Array
    ntk: jax.Array


def half_square(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def linear_model(num_params=P, duplicate=False):
    """Features of train and test, prior covariance of the parameters, targets."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(N, num_params)), rng.normal(size=(M, num_params))
    if duplicate:
        train[1] = train[0]
    root = rng.normal(size=(num_params, num_params))
    return train, test, root @ root.T, rng.normal(size=(N, K))


def pairs(train, test, prior, dtype=None):
    """Its kernels: train, test and train, test."""
    pair = lambda a, b: Pair(
        jnp.asarray(a @ prior @ b.T, dtype), jnp.asarray(a @ b.T, dtype)
    )
    return pair(train, train), pair(test, train), pair(test, test)


@pytest.mark.parametrize(
    ("num_params", "duplicate"), [(P, False), (P, True), (4, False)]
)
def test_ensemble_of_linear_models_is_exact(x64, num_params, duplicate):
    train, test, prior, y = linear_model(num_params, duplicate)
    kernels, cross, own = pairs(train, test, prior)
    found = predict.ensemble(
        half_square, kernels, jnp.asarray(y), cross, own, time=jnp.array([5.0, jnp.inf])
    )
    assert found.covariance.shape == (2, M, M)
    propagators = [
        scipy.linalg.expm(-5 / N * train.T @ train),
        np.eye(num_params) - np.linalg.pinv(train) @ train,
    ]
    for index, forget in enumerate(propagators):
        mean = test @ (np.eye(num_params) - forget) @ np.linalg.pinv(train) @ y
        covariance = test @ forget @ prior @ forget.T @ test.T
        close = {"rtol": 0, "atol": 1e-12 * np.linalg.norm(own.nngp)}
        np.testing.assert_allclose(found.mean[index], mean, **close)
        np.testing.assert_allclose(found.covariance[index], covariance, **close)
    assert found.num_dropped == max(N - num_params, int(duplicate))
    assert found.num_nonfinite == 0


def test_ensemble_of_trained_wide_networks():
    """Networks of width 512, trained by small steps."""
    width, num, d, time, rate = 512, 300, 3, 5.0, 0.1
    rng = np.random.default_rng(0)
    draw = lambda n: (
        np.sqrt(d)
        * (lambda x: x / np.linalg.norm(x, axis=1)[:, None])(rng.normal(size=(n, d)))
    )
    x, z, y = draw(5), draw(3), rng.normal(size=(5, 1))

    def pair(a, b):
        cosine = np.clip(a @ b.T / d, -1, 1)
        angle = np.arccos(cosine)
        slope = (np.pi - angle) / np.pi
        nngp = (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
        return Pair(
            *(jnp.asarray(k, jnp.float32) for k in (nngp, nngp + cosine * slope))
        )

    found = predict.ensemble(
        half_square,
        pair(x, x),
        jnp.asarray(y, "float32"),
        pair(z, x),
        pair(z, z),
        time=time,
    )

    def model(params, inputs):
        hidden = jax.nn.relu(inputs @ params[0] / np.sqrt(d))
        return hidden @ params[1] * np.sqrt(2 / width)

    def train(key):
        keys = jax.random.split(key)
        params = [
            jax.random.normal(keys[0], (d, width)),
            jax.random.normal(keys[1], (width, 1)),
        ]
        loss = lambda p: jnp.mean(half_square(model(p, jnp.asarray(x)), jnp.asarray(y)))
        step = lambda _, p: jax.tree.map(
            lambda a, g: a - rate * g, p, jax.grad(loss)(p)
        )
        return model(jax.lax.fori_loop(0, round(time / rate), step, params), z)[:, 0]

    outputs = np.asarray(
        jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), num))
    )
    standard_error = np.std(outputs, axis=0, ddof=1) / np.sqrt(num)
    # Beside the sampling error, networks of this width are off by some 1 / width.
    error = np.abs(outputs.mean(axis=0) - found.mean[:, 0])
    assert np.all(error < 3 * standard_error + 0.01)
    miss = np.linalg.norm(np.cov(outputs.T) - found.covariance)
    # A sample covariance of 300 errs by sqrt((3 + 1) / 300) of its norm or less.
    assert miss < 3 * np.sqrt(4 / num) * np.linalg.norm(found.covariance)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_posterior_is_conditioning(x64, noise):
    train, test, _, y = linear_model(P)
    kernel, cross, own = train @ train.T, test @ train.T, test @ test.T
    found = predict.posterior(
        *map(jnp.asarray, (kernel, y, cross, own)), noise_variance=noise
    )
    solved = scipy.linalg.solve(kernel + noise * np.eye(N), np.hstack([y, cross.T]))
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(found.mean, cross @ solved[:, :K], **close)
    np.testing.assert_allclose(found.covariance, own - cross @ solved[:, K:], **close)
    # Least squares is the same in parameters: those of the data and the prior's.
    if noise:
        precision = np.eye(P) + train.T @ train / noise
        covariance = test @ np.linalg.solve(precision, test.T)
        np.testing.assert_allclose(found.covariance, covariance, **close)


def test_ensemble_with_one_kernel_ends_in_the_posterior(x64):
    train, test, _, y = linear_model(4)
    kernels, cross, own = pairs(train, test, np.eye(4))
    y = jnp.asarray(y)
    late = predict.ensemble(half_square, kernels, y, cross, own, time=jnp.inf)
    exact = predict.posterior(kernels.nngp, y, cross.nngp, own.nngp, noise_variance=0.0)
    np.testing.assert_allclose(late.mean, exact.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(late.covariance, exact.covariance, rtol=0, atol=1e-12)
    assert late.num_dropped == exact.num_dropped == N - 4
    np.testing.assert_allclose(exact.covariance, 0, atol=1e-12)


def test_covariances_are_semidefinite_to_rounding():
    train, test, prior, y = linear_model(P, duplicate=True)
    together = np.concatenate([test, train, test[:1]])
    kernels, cross, own = pairs(train, together, prior, jnp.float32)
    y = jnp.asarray(y, jnp.float32)
    times = jnp.array([0.0, 1.0, 1e3, jnp.inf])
    found = predict.ensemble(half_square, kernels, y, cross, own, time=times)
    smallest = np.linalg.eigvalsh(np.asarray(found.covariance, np.float64))[:, 0]
    rounding = 100 * np.finfo(np.float32).eps * np.linalg.norm(own.nngp, 2)
    assert np.all(smallest > -rounding)
    exact = predict.posterior(
        kernels.nngp, y, cross.nngp, own.nngp, noise_variance=1e-3
    )
    covariance = np.asarray(exact.covariance, np.float64)
    assert np.linalg.eigvalsh(covariance)[0] > -rounding
    np.testing.assert_array_equal(covariance, covariance.T)
    np.testing.assert_allclose(found.covariance[0], own.nngp, rtol=1e-6)


def test_nonfinite_kernels_are_counted():
    kernel = jnp.eye(2).at[0, 0].set(jnp.nan)
    pair = Pair(jnp.eye(2), kernel)
    y = jnp.ones((2, 1))
    found = predict.ensemble(half_square, pair, y, pair, pair, time=jnp.inf)
    assert found.num_nonfinite == 2 + 4
    found = predict.posterior(kernel, y, jnp.eye(2), jnp.eye(2), noise_variance=0.1)
    assert found.num_nonfinite == 2 + 4


def test_under_transformations():
    train, test, prior, y = linear_model()
    kernels, cross, own = pairs(train, test, prior, jnp.float32)
    y = jnp.asarray(y, jnp.float32)
    spread = lambda time: jnp.trace(
        predict.ensemble(half_square, kernels, y, cross, own, time=time).covariance
    )
    times = jnp.array([0.5, 2.0])
    found = jax.jit(jax.vmap(spread))(times)
    np.testing.assert_allclose(found, [spread(0.5), spread(2.0)], rtol=1e-5)
    slope = (spread(2.05) - spread(1.95)) / 0.1
    np.testing.assert_allclose(jax.grad(spread)(2.0), slope, rtol=1e-2)
    mean = lambda noise: (
        predict.posterior(
            kernels.nngp, y, cross.nngp, own.nngp, noise_variance=noise
        ).mean
    )
    slope = (mean(1.05) - mean(0.95)) / 0.1
    np.testing.assert_allclose(jax.jacrev(mean)(1.0), slope, rtol=2e-2, atol=1e-4)


EYE = jnp.eye(3)
PAIR = Pair(EYE, EYE)
WRONG_ENSEMBLES = {
    "attribute": ({"kernels": EYE}, r"`kernels` must have the attribute `ntk`"),
    "nngp": ({"kernels_test_test": EYE}, r"`kernels_test_test` must have .* `nngp`"),
    "shapes": ({"kernels": Pair(jnp.eye(2), EYE)}, r"`kernels\.nngp` must have the"),
    "test": (
        {"kernels_test_test": Pair(jnp.eye(2), EYE)},
        r"`kernel_test_test` must be the kernel of the 3 test examples",
    ),
    "time": ({"time": -1.0}, r"`time` must be at least 0 \(or infinity\)"),
    "loss": (
        {"loss_fn": lambda f, y: jnp.sum((f - y) ** 4, axis=1)},
        r"`loss_fn` must be quadratic",
    ),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_ENSEMBLES)
def test_bad_ensemble(case):
    changes, message = WRONG_ENSEMBLES[case]
    arguments = {
        "loss_fn": half_square,
        "kernels": PAIR,
        "targets": jnp.ones((3, 1)),
        "kernels_test": PAIR,
        "kernels_test_test": PAIR,
        "time": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        predict.ensemble(**{**arguments, **changes})


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_variance": -1.0}, r"`noise_variance` must be finite and at least 0"),
        ({"kernel": jnp.ones((3, 3, 1))}, r"`kernel` must be a square matrix"),
        ({"kernel_test": None}, r"`kernel_test` must be an array of real numbers"),
        ({"kernel_test": jnp.ones((3, 2))}, r"`kernel_test` must be the kernel of"),
        ({"kernel_test_test": jnp.ones(3)}, r"`kernel_test_test` must be the kernel"),
    ],
)
def test_bad_posterior(changes, message):
    arguments = {
        "kernel": EYE,
        "targets": jnp.ones((3, 1)),
        "kernel_test": EYE,
        "kernel_test_test": EYE,
        "noise_variance": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        predict.posterior(**{**arguments, **changes})
