"""The sketch: linear, unbiased, as precise as it says, also on structured vectors."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.csgraph
from scipy.spatial.distance import pdist, squareform

from jaxtheory import data, dynamics
from jaxtheory.dynamics import _sketch_maps

KINDS = ["count", "srht", "gaussian"]
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


@pytest.mark.parametrize("kind", ["srht", "gaussian"])
def test_other_kinds_are_linear_and_have_the_entries_they_say(kind):
    """17 buckets are no power of two, and 50 columns no multiple of the block."""
    columns = jax.vmap(lambda v: sketched(v, dim=17, kind=kind))(jnp.eye(50))
    matrix = np.asarray(columns, np.float64).T
    v = np.asarray(normal(5, (50,)))
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(
        sketched(v, dim=17, kind=kind), matrix @ v, atol=50 * 4 * eps
    )
    if kind == "gaussian":
        assert abs(matrix.std() * np.sqrt(17) - 1) < 4 / np.sqrt(2 * matrix.size)
        assert np.abs(np.triu(np.corrcoef(matrix), 1)).max() < 0.65
        return
    # Rows of a Hadamard matrix of 64, one from each part, times the column's sign.
    hadamard = np.array(scipy.linalg.hadamard(64).tolist())[:, :50]
    lengths = np.diff(np.arange(18) * 64 // 17)
    rows = matrix * np.sqrt(64 / lengths[:, None]) * np.sign(matrix[:1])
    relative = hadamard[:, None] * hadamard[None]
    for j, row in enumerate(rows):
        part = range(j * 64 // 17, (j + 1) * 64 // 17)
        first = range(64 // 17)
        assert any(np.allclose(row, relative[i, k]) for i in part for k in first)


def test_an_srht_of_as_many_numbers_is_an_isometry():
    v = normal(6, (60,))
    norm = np.linalg.norm(sketched(v, dim=64, kind="srht"))
    np.testing.assert_allclose(norm, np.linalg.norm(v), rtol=1e-6)


def test_the_map_of_a_seed_stays_what_it_was(matrix):
    """Paths on disk are compared with sketches of a later version."""
    bits = jax.random.bits(jax.random.key(0, impl="threefry2x32"), (7 + 13,))
    words, offsets = np.asarray(bits[:7]), np.asarray(bits[7:]) % 16
    i = np.arange(200)
    signs = 1 - 2 * ((words[i // 32] >> (i % 32).astype(np.uint32)) & 1).astype(int)
    expected = np.zeros((16, 200))
    expected[(i % 16 - offsets[i // 16].astype(int)) % 16, i] = signs
    np.testing.assert_array_equal(matrix, expected)


def test_a_long_vector_is_folded_before_it_is_sketched():
    """300 numbers for 2 buckets: five blocks of 64 at random places of 128 numbers."""
    matrix = np.asarray(jax.vmap(lambda v: sketched(v, dim=2))(jnp.eye(300))).T
    key = jax.random.key(0, impl="threefry2x32")
    bits = np.asarray(jax.random.bits(jax.random.fold_in(key, 0), (2 + 2 * 5,)))
    i = np.arange(300)
    within, block = i % 64, i // 64
    place = bits[:5] % 64
    signs = 1.0 - 2 * ((bits[10:][within // 32] >> (within % 32).astype("u4")) & 1)
    signs *= 1.0 - 2 * (bits[5:10] >> 31)[block]
    folded = np.zeros((300, 128), np.float32)
    folded[i, place[block].astype(int) + within] = signs
    short = jax.vmap(lambda v: sketched(v, dim=2))(folded)
    np.testing.assert_array_equal(matrix, np.asarray(short).T)
    assert (np.abs(matrix).sum(0) == 1).all()
    # Leaves that end within blocks and span several of them.
    v = normal(11, (300,))
    tree = [v[:10], v[10:150].reshape(7, 20), v[150:]]
    project = jax.jit(dynamics.sketch(dim=2).project)
    np.testing.assert_allclose(project(tree), matrix @ np.asarray(v), atol=1e-5)


@pytest.mark.parametrize("size", [100, 3000])
def test_sketches_of_many_runs_and_their_gradient(size):
    """Linear, under `vmap` and `grad` too, also where the vector is folded first."""
    v, u = normal(4, (2, size)), normal(5, (16,))
    measure = dynamics.sketch(dim=16)
    together = jax.vmap(measure.project)(v)
    np.testing.assert_allclose(together[1], measure.project(v[1]), rtol=1e-5)
    slope = jax.grad(lambda v: jnp.vdot(u, measure.project(v)))(v[0])
    back = float(jnp.vdot(slope, v[1]))
    np.testing.assert_allclose(back, float(jnp.vdot(u, together[1])), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "stride", "dim"),
    [
        *itertools.product(["count", "srht"], [1, 64, 128, 256], [128]),
        *itertools.product(["count"], [1, 64, 512], [16]),
        ("gaussian", 128, 128),
    ],
)
def test_squared_norms_are_unbiased_and_as_precise_as_stated(kind, stride, dim):
    """One neuron's column: without a turn for each block its energy meets itself.

    For 16 buckets the vector is folded first, in blocks of 512.
    """
    num_seeds = 40 if kind == "gaussian" else 200
    vector = np.zeros(128 * 32, np.float32)
    vector[::stride] = 1.0
    norms = _norms_over_seeds(kind, dim, vector, jnp.arange(num_seeds, dtype="uint32"))
    ratios = np.asarray(norms, np.float64) ** 2 / vector.sum()
    stated = np.sqrt(2 / dim)
    assert abs(ratios.mean() - 1) < 4 * stated / np.sqrt(num_seeds)
    # The standard deviation of 200 ratios is itself known to 5 %, of 40 to 11 %.
    assert ratios.std() < (1 + 4 / np.sqrt(2 * num_seeds)) * stated
    relative_error = dynamics.sketch(dim=dim, kind=kind).relative_error
    assert relative_error == pytest.approx(
        stated / 2 * (1.1**0.5 if kind == "count" else 1)
    )
    assert np.std(norms) / np.mean(norms) < 1.5 * relative_error


@functools.partial(jax.jit, static_argnums=(0, 1))
def _norms_over_seeds(kind, dim, vector, seeds):
    one = lambda s: jnp.linalg.norm(_sketch_maps.sketch_vectors(kind, dim, [vector], s))
    return jax.lax.map(one, seeds)


@pytest.fixture(scope="module")
def digits_path():
    """601 successive iterates of a network on digits, minus the first, in double."""
    digits = data.digits(key=jax.random.key(4))
    params = {"w": normal(3, (64, 16)) * 0.15, "v": normal(8, (16, 10)) * 0.25}
    model = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    optimizer = optax.sgd(0.05, momentum=0.9)
    history = dynamics.train(
        dynamics.supervised(model, optax.softmax_cross_entropy_with_integer_labels),
        dynamics.init(optimizer, params),
        optimizer,
        (digits.x_train, digits.y_train),
        num_steps=600,
        batch_size=32,
        key=jax.random.key(5),
        trace={"params": lambda s: s.params},
        record_every=100,
        progress=False,
    )
    leaves = jax.tree.leaves(history.trace["params"])
    points = np.concatenate([a.reshape(600, -1) for a in leaves], 1).astype(float)
    return points - points[:1]


def step_lengths(points):
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sketches(kind, dim, points, seed):
    one = lambda point: _sketch_maps.sketch_vectors(kind, dim, [point], seed)
    return jax.vmap(one)(points)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_that_the_sketch_reports_holds_on_a_training_path(kind, digits_path):
    """Uncalibrated lengths over many maps; a training path's tree is its length."""
    measure = dynamics.sketch(dim=256, kind=kind)
    steps, lengths = np.diff(digits_path, axis=0), step_lengths(digits_path)
    cosines = (steps @ steps.T) ** 2 / np.outer(lengths, lengths)
    rank = lengths.sum() ** 2 / cosines.sum()
    assert 5 < rank < 50
    points = jnp.asarray(digits_path, jnp.float32)
    num = 40
    drawn = [np.asarray(_sketches(kind, 256, points, np.uint32(s))) for s in range(num)]
    ratios = np.array([step_lengths(d).sum() for d in drawn]) / lengths.sum()
    reported = measure.path_length_error(rank)
    assert reported == pytest.approx(measure.relative_error / np.sqrt(rank))
    # The standard deviation of 40 is known to 11 %; of means of roots there is a bias
    # of a quarter of the squared relative error of a distance's square.
    assert 0.6 * reported < ratios.std() < 1.45 * reported
    assert abs(ratios.mean() - 1) < 4 * reported / np.sqrt(num) + 1 / (4 * 256)
    ranks = [measure.effective_rank(d) for d in drawn[:10]]
    np.testing.assert_allclose(ranks, rank, rtol=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_tree_and_dimension_of_a_sketched_training_path(kind, digits_path):
    points = jnp.asarray(digits_path, jnp.float32)
    sketched = np.asarray(_sketches(kind, 1024, points, np.uint32(0)), np.float64)
    exact, rough = tree_length(digits_path), tree_length(sketched)
    scale = step_lengths(digits_path).sum() / step_lengths(sketched).sum()
    assert abs(rough * scale / exact - 1) < 1e-3
    worst = dynamics.sketch(kind=kind).path_length_error()
    assert abs(rough / exact - 1) < 4 * worst
    dimension = lambda points: dynamics.topology.persistent_homology_dimension(
        squareform(pdist(points)).astype(np.float32), key=jax.random.key(1)
    )
    of_path, of_sketch = dimension(digits_path), dimension(sketched)
    assert abs(float(of_path.value) - float(of_sketch.value)) < 0.05


def tree_length(points):
    """E_1 by SciPy, in double precision."""
    distances = squareform(pdist(points))
    return scipy.sparse.csgraph.minimum_spanning_tree(distances).sum()


def test_effective_ranks_in_closed_form():
    measure = dynamics.sketch(dim=4096, kind="srht")
    straight = np.arange(5.0)[:, None] * np.eye(1, 4096)
    assert measure.effective_rank(straight) == pytest.approx(1, rel=1e-3)
    # Four steps of length 1 along axes of their own, one of which is gone twice.
    around = np.cumsum(np.eye(4096)[[0, 1, 2, 2]], axis=0)
    # tr M = 3 (the first point is no step), tr M^2 = 1 + 4.
    corrected = (5 - 9 / 4096) / (1 + 1 / 4096)
    assert measure.effective_rank(around) == pytest.approx(9 / corrected)
    assert np.isnan(measure.effective_rank(around * [[1], [1], [np.nan], [1]]))


def test_something_else_than_the_displacement():
    of = lambda state: state.params["w"] * 2
    tree = {"w": normal(9, (30,)), "b": jnp.ones(3)}
    state = dynamics.init(optax.sgd(0.1), tree)
    measured = dynamics.sketch(dim=8, of=of)(state)
    np.testing.assert_array_equal(measured, sketched(2 * tree["w"], dim=8))
    assert dynamics.sketch(of=of) == dynamics.sketch(of=of) != dynamics.sketch()


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


def test_whole_numbers_of_numpy(user_land):
    dim: Any = np.int64(8)
    seed: Any = np.uint8(3)
    same = dynamics.sketch(dim=8, seed=3)
    assert dynamics.sketch(dim=dim, seed=seed) == same


@pytest.mark.parametrize("kind", ["sparse", None, 1])
def test_bad_kind(kind, user_land):
    with pytest.raises(
        ValueError, match=r"`kind` must be one of \['count', 'gaussian'"
    ):
        dynamics.sketch(kind=kind)


def test_what_cannot_be_sketched(user_land):
    measure = dynamics.sketch(dim=8)
    with pytest.raises(ValueError, match=r"at least one number.*no elements"):
        measure.project({"w": jnp.zeros((0, 3))})
    with pytest.raises(ValueError, match=r"`tree\['w'\]` has dtype complex64"):
        measure.project({"w": jnp.zeros(3, jnp.complex64)})
    with pytest.raises(ValueError, match="`of` must be a function"):
        dynamics.sketch(of=jnp.ones(3))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 7)])
def test_points_that_are_no_sketches(shape, user_land):
    with pytest.raises(ValueError, match=r"at least two sketches \[r, 8\]"):
        dynamics.sketch(dim=8).effective_rank(np.zeros(shape))


def test_a_path_that_stands_has_no_rank(user_land):
    with pytest.raises(ValueError, match="`points` must move, but all 3 sketches"):
        dynamics.sketch(dim=8).effective_rank(np.ones((3, 8)))
    with pytest.raises(ValueError, match="`effective_rank` must be a number of at"):
        dynamics.sketch(dim=8).path_length_error(float("nan"))
