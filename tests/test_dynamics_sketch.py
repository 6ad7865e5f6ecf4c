"""The sketch: linear, unbiased, as precise as it says, also on structured vectors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics

KEY = jax.random.key(7)


def normal(stream, shape):
    return jax.random.normal(jax.random.fold_in(KEY, stream), shape)


def sketched(vector, **options):
    """The sketch of a displacement."""
    vector = jnp.asarray(vector)
    state = dynamics.init(optax.sgd(0.1), jnp.zeros_like(vector))
    return dynamics.sketch(**options)(state._replace(params=vector))


@pytest.fixture(scope="module")
def matrix():
    """The sketch as a dense matrix ``[16, 200]``, a column a coordinate."""
    columns = jax.vmap(lambda v: sketched(v, dim=16))(jnp.eye(200))
    return np.asarray(columns).T


def test_each_coordinate_goes_to_one_bucket_with_a_sign(matrix):
    assert matrix.shape == (16, 200)
    assert set(np.unique(matrix)) == {-1.0, 0.0, 1.0}
    assert (np.abs(matrix).sum(0) == 1).all()
    buckets = np.abs(matrix).argmax(0)
    blocks = buckets[:192].reshape(12, 16)
    assert all(sorted(block) == list(range(16)) for block in blocks.tolist())
    # Each block is turned by its own offset, so blocks start in many buckets.
    assert len(set(blocks[:, 0].tolist())) > 4
    # Signs are fair: 200 of them have standard deviation 7 around 100.
    assert abs((matrix.sum(0) > 0).sum() - 100) < 4 * 7.1


def test_it_is_linear(matrix):
    v, w = np.asarray(normal(0, (2, 200)))
    eps = float(np.finfo(np.float32).eps)
    for vector in (v, w, 2 * v - 3 * w):
        # 13 terms a bucket, each at most 4 * 5 in size.
        np.testing.assert_allclose(
            sketched(vector, dim=16), matrix @ vector, atol=13 * 20 * eps
        )


def test_a_pytree_is_sketched_as_the_vector_of_its_leaves():
    vector = normal(1, (30,))
    tree = {"a": vector[:6].reshape(2, 3), "b": {"c": vector[6:]}}
    state = dynamics.init(optax.sgd(0.1), tree)
    zero = jax.tree.map(jnp.zeros_like, tree)
    measured = jax.jit(dynamics.sketch(dim=8))(state._replace(initial_params=zero))
    np.testing.assert_allclose(measured, sketched(vector, dim=8), rtol=1e-6)
    assert (dynamics.sketch(dim=8)(state) == 0).all()


NUM_SEEDS = 200


def squared_norm_ratios(vector, dim):
    """``|S v|^2 / |v|^2`` over seeds."""
    vector = jnp.asarray(vector, jnp.float32)
    ratios = [
        jnp.sum(sketched(vector, dim=dim, seed=seed) ** 2) for seed in range(NUM_SEEDS)
    ]
    return np.asarray(ratios) / np.sum(np.asarray(vector, np.float64) ** 2)


@pytest.mark.parametrize("stride", [1, 64, 128, 200])
def test_squared_norms_are_unbiased_and_as_precise_as_stated(stride):
    """One neuron's column: without a turn for each block its energy meets itself."""
    dim = 128
    vector = np.zeros(128 * 64, np.float32)
    vector[::stride] = 1.0
    ratios = squared_norm_ratios(vector, dim)
    stated = np.sqrt(2 / dim)
    assert abs(ratios.mean() - 1) < 4 * stated / np.sqrt(NUM_SEEDS)
    # The standard deviation of 200 ratios is itself known to 5 %.
    assert ratios.std() < 1.25 * stated


def test_distances_along_a_training_path():
    x = normal(2, (64, 20))
    params = {"w": normal(3, (20, 40)) / 4, "v": jnp.full(40, 0.1)}
    model = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    optimizer = optax.sgd(0.05)
    history = dynamics.train(
        dynamics.supervised(model, lambda out, y: (out - y) ** 2),
        dynamics.init(optimizer, params),
        optimizer,
        (x, x[:, 0]),
        num_steps=60,
        batch_size=16,
        key=KEY,
        record={"path": dynamics.sketch(dim=256), "params": lambda s: s.params},
        record_every=10,
        progress=False,
    )
    points = [
        leaf.reshape(7, -1).astype(np.float64)
        for leaf in jax.tree.leaves(history.records["params"])
    ]
    exact = squared_distances(np.concatenate(points, axis=1))
    ratios = squared_distances(history.records["path"]) / exact
    assert np.abs(ratios - 1).max() < 4 * np.sqrt(2 / 256)
    assert history.records["path"].shape == (7, 256)
    assert (history.records["path"][0] == 0).all()


def squared_distances(points):
    rows, columns = np.triu_indices(len(points), 1)
    return ((points[rows] - points[columns]) ** 2).sum(1)


def test_it_is_a_value_and_always_the_same():
    assert dynamics.sketch(dim=8, seed=1) == dynamics.sketch(dim=8, seed=1)
    assert hash(dynamics.sketch()) == hash(dynamics.sketch(dim=1024, seed=0))
    assert dynamics.sketch(seed=1) != dynamics.sketch()
    v = jnp.ones(50)
    first = sketched(v, dim=8)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(sketched(v, dim=8), first)
    assert not np.array_equal(sketched(v, dim=8, seed=1), first)


def test_the_program_holds_no_signs():
    """A constant of the size of the parameters would be in every compiled chunk."""
    state = dynamics.init(optax.sgd(0.1), jnp.ones(100_000))
    program = str(jax.jit(dynamics.sketch(dim=64)).lower(state).compile().as_text())
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* constant\(", program)
    assert shapes
    assert max(np.prod([int(n) for n in s.split(",") if n]) for s in shapes) < 1000


def test_half_precision_moves_are_not_lost():
    start, end = jnp.full(4, 1.0, jnp.bfloat16), jnp.full(4, 1.0078125, jnp.bfloat16)
    state = dynamics.init(optax.sgd(0.1), start)._replace(params=end)
    measured = dynamics.sketch(dim=4)(state)
    assert measured.dtype == jnp.float32
    np.testing.assert_array_equal(np.abs(measured), np.full(4, 0.0078125))


def test_double_precision_is_subtracted_in_double(x64):
    start = jnp.full(4, 1.0)
    state = dynamics.init(optax.sgd(0.1), start)._replace(params=start + 1e-12)
    measured = dynamics.sketch(dim=4)(state)
    assert measured.dtype == jnp.float32
    np.testing.assert_allclose(np.abs(measured), 1e-12, rtol=1e-3)


@pytest.mark.parametrize("dim", [0, -1, 2.0, True])
def test_bad_dim(dim, user_land):
    with pytest.raises(ValueError, match="`dim` must be a positive integer"):
        dynamics.sketch(dim=dim)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None])
def test_bad_seed(seed, user_land):
    with pytest.raises(ValueError, match="`seed` must be an integer from 0 to"):
        dynamics.sketch(seed=seed)
