"""Pruning against NumPy, and its error against what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import compression
from jaxtheory.dynamics import tails

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": jnp.asarray(RNG.normal(size=(3, 3, 2, 5)) + 0.3, jnp.float32)},
    "dense": {
        "bias": jnp.asarray(RNG.normal(size=6), jnp.float32),
        "kernel": jnp.asarray(RNG.standard_t(2, size=(8, 6)), jnp.float32),
    },
}
KERNELS = {"['conv']['kernel']": "conv", "['dense']['kernel']": "dense"}


def arrays(params):
    """The two kernels in double precision, by path."""
    return {
        path: np.asarray(params[name]["kernel"], float)
        for path, name in KERNELS.items()
    }


@pytest.mark.parametrize("centre", ["none", "median"])
def test_smallest_entries_are_left_out(centre):
    found = compression.prune_magnitude(PARAMS, fraction=0.4, centre=centre)
    assert set(found.num_kept) == set(KERNELS)
    np.testing.assert_array_equal(
        found.params["dense"]["bias"], PARAMS["dense"]["bias"]
    )
    for path, w in arrays(PARAMS).items():
        middle = np.median(w) if centre == "median" else 0.0
        num = int(0.4 * w.size)
        least = np.argsort(np.abs(w - middle).reshape(-1), kind="stable")[:num]
        expected = w.reshape(-1).copy()
        expected[least] = middle
        pruned = arrays(found.params)[path]
        np.testing.assert_allclose(pruned.reshape(-1), expected, atol=1e-6)
        assert found.num_kept[path] == w.size - num + (centre == "median")
        assert found.num_params[path] == w.size
        error = np.linalg.norm(expected - w.reshape(-1)) / np.linalg.norm(w)
        assert float(found.relative_error[path]) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("prune", ["prune_magnitude", "prune_svd"])
@pytest.mark.parametrize("centre", ["none", "median"])
def test_as_many_as_the_error_allows(prune, centre):
    found = getattr(compression, prune)(PARAMS, relative_error=0.3, centre=centre)
    for path, w in arrays(PARAMS).items():
        middle = np.median(w) if centre == "median" else 0.0
        matrix = (w - middle).reshape(-1, w.shape[-1])
        sizes = np.sort(np.abs(matrix).reshape(-1))
        per_size = 1
        if prune == "prune_svd":
            sizes = np.sort(np.linalg.svd(matrix, compute_uv=False))
            per_size = sum(matrix.shape)
        errors = np.sqrt(np.cumsum(sizes**2)) / np.linalg.norm(w)
        num = int(np.sum(errors <= 0.3))
        assert num > 0
        kept = per_size * (len(sizes) - num) + (centre == "median")
        assert found.num_kept[path] == kept
        assert float(found.relative_error[path]) == pytest.approx(
            errors[num - 1], rel=1e-4
        )
        assert found.relative_error[path] <= 0.3


def test_svd_is_the_nearest_of_its_rank():
    found = compression.prune_svd(PARAMS, fraction=0.5)
    for path, w in arrays(PARAMS).items():
        matrix = w.reshape(-1, w.shape[-1])
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        rank = len(s) - len(s) // 2
        expected = (u[:, :rank] * s[:rank]) @ v[:rank]
        pruned = arrays(found.params)[path].reshape(matrix.shape)
        np.testing.assert_allclose(pruned, expected, atol=1e-5)
        assert found.num_kept[path] == rank * sum(matrix.shape)


def test_heavier_tails_prune_better():
    # Of 10,000 stable numbers the same share, at three indices.
    errors = []
    for alpha in (1.2, 1.6, 2.0):
        w = tails.stable(jax.random.key(1), alpha, (100, 100))
        found = compression.prune_magnitude({"w": w}, fraction=0.9)
        errors.append(float(found.relative_error["['w']"]))
    assert errors[0] < errors[1] < errors[2]
    # Of a Gaussian: the share of the variance in its middle nine tenths.
    z = 1.6448536
    share = 0.9 - 2 * z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    assert errors[2] == pytest.approx(np.sqrt(share), rel=0.02)


def test_at_any_scale_and_of_nothing():
    w = PARAMS["dense"]["kernel"]
    reference = compression.prune_magnitude({"w": w}, relative_error=0.3)
    for scale in (1e-30, 1e30):
        found = compression.prune_magnitude({"w": scale * w}, relative_error=0.3)
        assert found.num_kept == reference.num_kept
        np.testing.assert_allclose(
            found.relative_error["['w']"], reference.relative_error["['w']"], rtol=1e-5
        )
    zero = compression.prune_svd({"w": 0 * w}, relative_error=0.3)
    assert (zero.num_kept["['w']"], zero.relative_error["['w']"]) == (0, 0)
    whole = compression.prune_magnitude({"w": w}, fraction=0.0)
    np.testing.assert_array_equal(whole.params["w"], w)
    half = compression.prune_magnitude({"w": w.astype(jnp.bfloat16)}, fraction=0.5)
    assert half.params["w"].dtype == jnp.bfloat16
    bad = compression.prune_magnitude({"w": w.at[0, 0].set(jnp.nan)}, fraction=0.5)
    assert jnp.isnan(bad.relative_error["['w']"])


def test_amounts_are_not_compiled_in():
    w = {"w": PARAMS["dense"]["kernel"]}
    prune = jax.jit(lambda w, amount: compression.prune_magnitude(w, fraction=amount))
    kept = [int(prune(w, jnp.array(a)).num_kept["['w']"]) for a in (0.25, 0.5)]
    assert kept == [36, 24]
    assert prune._cache_size() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "Give either `fraction` or `relative_error`, but neither was given"),
        ({"fraction": 0.1, "relative_error": 0.1}, "but both were given"),
        ({"fraction": 1.0}, r"`fraction` must be in \[0, 1\), but was 1.0"),
        ({"relative_error": -0.1}, r"`relative_error` must be in \[0, 1\)"),
        ({"fraction": 0.1, "centre": "mean"}, "`centre` must be one of 'none', 'medi"),
        ({"fraction": 0.1, "select": lambda path: False}, "`select` must choose"),
    ],
)
def test_bad_input(changes, message, user_land):
    for prune in (compression.prune_magnitude, compression.prune_svd):
        with pytest.raises(ValueError, match=message):
            prune(PARAMS, **changes)
    with pytest.raises(ValueError, match="`params"):
        compression.prune_magnitude({"w": jnp.ones((2, 2), int)}, fraction=0.1)
