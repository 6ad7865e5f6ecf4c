"""Frame geometry, uniformity and margins against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxtheory.collapse import (
    frame_geometry,
    one_vs_rest_margin,
    statistics,
    uniformity,
)


def simplex(count, dim=None):
    """A simplex frame in a random orientation, rows of different length."""
    dim = count if dim is None else dim
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return (np.eye(count, dim) - np.eye(count, dim).mean(0)) @ rotation


def orthoplex(dim):
    return np.concatenate([np.eye(dim), -np.eye(dim)])


def single(array):
    return jnp.asarray(array, jnp.float32)


def test_geometry_of_a_frame_and_of_an_orthoplex():
    for scale in [1.0, 2.0**90, 2.0**-90]:
        found = frame_geometry(single(scale * simplex(6)))
        np.testing.assert_allclose(jnp.stack(found), 0, atol=2e-6)
    vectors = orthoplex(3)
    gram = vectors @ vectors.T
    frame = (np.eye(6) - 1 / 6) / np.sqrt(5)
    distance = np.linalg.norm(gram / np.linalg.norm(gram) - frame)
    off = gram[~np.eye(6, dtype=bool)]
    found = frame_geometry(single(vectors))
    np.testing.assert_allclose(found.distance, distance, rtol=1e-6)
    np.testing.assert_allclose(found.equiangular, np.abs(off + 1 / 5).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.equinorm, 0, atol=1e-6)
    assert all(jnp.isnan(value) for value in frame_geometry(jnp.zeros((6, 6))))


def test_equinorm_is_the_coefficient_of_variation_and_has_no_sign():
    """Mean signed log-ratios give -.5, .5 or .06 with the numbering of the classes."""
    vectors = simplex(6) * np.array([1.0, 2.0, 0.5, 1.0, 1.5, 1.0])[:, None]
    norms = np.linalg.norm(vectors, axis=1)
    rng = np.random.default_rng(1)
    for _ in range(3):
        found = frame_geometry(single(vectors[rng.permutation(6)]))
        np.testing.assert_allclose(
            found.equinorm, norms.std() / norms.mean(), rtol=1e-6
        )


def test_equiangular_does_not_cancel():
    """Centred vectors of equal norm: the signed mean of cos + 1/(K-1) is always 0."""
    vectors = orthoplex(3)
    gram = vectors @ vectors.T
    signed = (gram + 1 / 5)[~np.eye(6, dtype=bool)].mean()
    np.testing.assert_allclose(signed, 0, atol=1e-15)
    found = frame_geometry(single(vectors)).equiangular
    np.testing.assert_allclose(found, (24 * 0.2 + 6 * 0.8) / 30, rtol=1e-6)


def test_statistics_have_the_classifier_frame():
    labels = jnp.arange(24) % 6
    means, weight = single(orthoplex(3)), single(simplex(6)[:, :3])
    nc = statistics(means[labels], labels, classifier=(weight, None))
    rows = frame_geometry(weight)
    centred = frame_geometry(means)  # their mean is zero
    for suffix in ["", "_equinorm", "_equiangular"]:
        field = (suffix or "_distance")[1:]
        found = getattr(nc, f"nc2_classifier{suffix}"), getattr(nc, f"nc2{suffix}")
        expected = getattr(rows, field), getattr(centred, field)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_uniformity_of_a_simplex_frame():
    frame = single(3 * simplex(10))
    np.testing.assert_allclose(uniformity(frame), -0.39925, atol=1e-5)
    log_distance = np.log(20 / 9) / 2
    for exponent in [1.0, 2.5, None]:
        found = uniformity(frame, kernel="riesz", exponent=exponent)
        power = 8 if exponent is None else exponent
        np.testing.assert_allclose(found, -power * log_distance, rtol=1e-5)


def test_uniformity_against_loops_and_relabelling():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(10, 10))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(10) for j in range(10) if i != j]
    gaps = np.array([np.linalg.norm(units[i] - units[j]) for i, j in pairs])
    for order in [np.arange(10), rng.permutation(10)]:
        shuffled = single(vectors[order])
        found = uniformity(shuffled)
        np.testing.assert_allclose(found, np.mean(np.log(1 / gaps)), rtol=1e-5)
        riesz = uniformity(shuffled, kernel="riesz", exponent=2.5)
        np.testing.assert_allclose(riesz, np.log(np.mean(gaps**-2.5)), rtol=1e-5)


def test_riesz_kernel_does_not_underflow_in_many_dimensions():
    """2^(-510/2) is 0 in float32."""
    found = uniformity(jnp.eye(20, 512), kernel="riesz")
    np.testing.assert_allclose(found, -510 * np.log(2) / 2, rtol=1e-5)
    gradient = jax.grad(lambda v: uniformity(v, kernel="riesz"))(jnp.eye(20, 512))
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.any(gradient != 0)


def test_uniformity_of_what_has_no_direction():
    vectors = np.eye(10)
    same, zero = vectors.copy(), vectors.copy()
    same[1], zero[1] = 2 * same[0], 0
    for kernel in ["log", "riesz"]:
        assert uniformity(single(same), kernel=kernel) == jnp.inf
        assert jnp.isnan(uniformity(single(zero), kernel=kernel))
    near = vectors.copy()  # 2 - 2 cos is 0 in float32 for an angle of 1e-4
    near[1] = near[0] + 1e-4 * vectors[1]
    found = uniformity(single(near))
    expected = (2 * np.log(1e4) - 88 * np.log(2) / 2) / 90
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("vectors", "margin"),
    [
        (simplex(5), 5 / 4),
        (2.0**600 * simplex(7, 40), 7 / 6),
        (orthoplex(3), 1.0),
        (orthoplex(4)[:6], 1.0),
        *(
            (np.stack([np.cos(t), np.sin(t)], axis=1), 1 - np.cos(2 * np.pi / k))
            for k in (3, 5, 12)
            for t in [2 * np.pi * np.arange(k) / k + 0.3]
        ),
        (np.array([[1.0, 0], [0, 1.0], [1.0, 1.0]]), 1 - np.sqrt(0.5)),
    ],
)
def test_one_vs_rest_margin_has_closed_forms(vectors, margin):
    np.testing.assert_allclose(one_vs_rest_margin(vectors), margin, rtol=1e-12)


def test_one_vs_rest_margin_in_the_hull_and_beside_a_general_solver():
    inside = np.array([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0], [0, 2.0]])
    np.testing.assert_allclose(one_vs_rest_margin(inside), 0, atol=1e-12)
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(7, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def distance(k):
        others = np.delete(rows, k, axis=0)
        gap = lambda y: np.sum((y @ others - rows[k]) ** 2)
        simplex = [{"type": "eq", "fun": lambda y: y.sum() - 1}]
        start, box = np.full(6, 1 / 6), [(0, 1)] * 6
        found = minimize(
            gap, start, bounds=box, constraints=simplex, options={"ftol": 1e-14}
        )
        return np.sqrt(found.fun)

    expected = min(map(distance, range(7)))
    np.testing.assert_allclose(one_vs_rest_margin(rows), expected, rtol=1e-5)
    assert np.isnan(one_vs_rest_margin(np.zeros((3, 2))))


V: Any = jnp.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frame_geometry(V[0]), r"`vectors` must be a matrix.*\(3,\)"),
        (lambda: frame_geometry(V[:1]), r"`vectors` must hold at least two.*\(1, 3\)"),
        (lambda: uniformity(V.astype(int)), r"`vectors` must be floating.*int32"),
        (lambda: uniformity(V, kernel="rbf"), r"`kernel` must be.*'rbf'"),
        (lambda: uniformity(V, exponent=2.0), r"`exponent` must be None.*riesz"),
        (
            lambda: uniformity(V, kernel="riesz", exponent=-1.0),
            r"`exponent` must be a positive number, but was -1.0",
        ),
        (lambda: one_vs_rest_margin(V[:1]), r"`vectors` must hold at least two"),
        (lambda: jax.jit(one_vs_rest_margin)(V), r"`vectors` must be concrete"),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
