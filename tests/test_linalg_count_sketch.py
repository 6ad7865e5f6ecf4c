"""CountSketch against a loop over coordinates, and its moments over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import linalg


def buckets(sketch, size):
    """The map as a matrix ``[size, dim]``, one coordinate at a time."""
    signs, offsets = np.asarray(sketch.signs, int), np.asarray(sketch.offsets)
    dim = signs.shape[1]
    matrix = np.zeros((size, dim))
    for i in range(size):
        block, place = divmod(i, dim)
        matrix[i, (place + offsets[block]) % dim] = signs[block, place]
    return matrix


@pytest.mark.parametrize(("size", "dim"), [(50, 8), (48, 8), (5, 8), (8, 8), (7, 1)])
def test_equals_the_loop(size, dim):
    sketch = linalg.draw_count_sketch(jax.random.key(0), size=size, dim=dim)
    assert set(np.unique(sketch.signs)) <= {-1, 1}
    vectors = np.random.default_rng(0).normal(size=(3, size)).astype(np.float32)
    expected = vectors.astype(np.float64) @ buckets(sketch, size)
    np.testing.assert_allclose(sketch.project(vectors), expected, atol=1e-5)


def test_double_and_half_precision(x64):
    sketch = linalg.draw_count_sketch(jax.random.key(0), size=50, dim=8)
    vectors = np.random.default_rng(0).normal(size=(3, 50))
    expected = vectors @ buckets(sketch, 50)
    np.testing.assert_allclose(
        sketch.project(jnp.asarray(vectors)), expected, atol=1e-14
    )
    ones = jnp.ones((1, 50), jnp.bfloat16)
    assert sketch.project(ones).dtype == jnp.float32


def test_inner_products_are_unbiased_with_the_stated_variance():
    """Over 2,000 draws: the mean, and a variance that the bound nearly is."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 60)).astype(np.float32)
    dim, num_draws = 10, 2000

    def product(key):
        found = linalg.draw_count_sketch(key, size=60, dim=dim).project(vectors)
        return jnp.vdot(found[0], found[1])

    found = jax.jit(jax.vmap(product))(jax.random.split(jax.random.key(0), num_draws))
    (a, b), exact = vectors, np.vdot(*vectors)
    bound = (a @ a * (b @ b) + exact**2) / dim
    assert abs(np.mean(found) - exact) < 4 * np.sqrt(bound / num_draws)
    # Less what coordinates would add that never meet: those of one block.
    assert 0.7 * bound < np.var(found) < 1.15 * bound


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    for wrong in ({"size": 0, "dim": 3}, {"size": 3, "dim": 1.5}):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            linalg.draw_count_sketch(jax.random.key(0), **wrong)
    sketch = linalg.draw_count_sketch(jax.random.key(0), size=50, dim=8)
    with pytest.raises(ValueError, match=r"`vectors` must have rows.*shape \(1, 40\)"):
        sketch.project(jnp.ones((1, 40)))
    with pytest.raises(ValueError, match=r"`vectors` must be rows.*shape \(50,\)"):
        sketch.project(jnp.ones(50))
