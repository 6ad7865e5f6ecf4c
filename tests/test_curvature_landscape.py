"""Slices, directions, trajectories, interpolation and curves against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from jaxtheory import curvature, linalg

landscape = curvature.landscape
EPS = float(np.finfo(np.float32).eps)
ONE = jnp.ones(1)


def square(outputs, y):
    return (outputs - y) ** 2


def linear(w, x):
    return x @ w["a"] + x @ w["b"]


def regression(seed=0, n=10):
    keys = jax.random.split(jax.random.key(seed), 4)
    draw = jax.random.normal
    w = {"a": draw(keys[0], (3,)), "b": draw(keys[1], (3,))}
    return w, draw(keys[2], (n, 3)), draw(keys[3], (n,))


def mean_square(w, x, y):
    """In double precision on the host."""
    total = np.asarray(w["a"], float) + np.asarray(w["b"], float)
    return np.mean((np.asarray(x, float) @ total - np.asarray(y, float)) ** 2)


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# Slices


@pytest.mark.parametrize(
    ("batch_size", "points_at_once"), [(None, 1), (4, 1), (None, 3), (4, 3)]
)
def test_slices_of_a_quadratic(batch_size, points_at_once):
    w, x, y = regression()
    d, e = regression(1)[0], regression(2)[0]
    u, v = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([0.0, 1.5])
    options = {"batch_size": batch_size, "points_at_once": points_at_once}
    line = landscape.slice_1d(
        linear, square, w, x, y, direction=d, coordinates=u, **options
    )
    plane = landscape.slice_2d(
        linear, square, w, x, y, directions=stack(d, e), first=u, second=v, **options
    )
    at = lambda a, b: jax.tree.map(lambda w, d, e: w + a * d + b * e, w, d, e)
    expected = [[mean_square(at(a, b), x, y) for b in v] for a in u]
    np.testing.assert_allclose(plane.losses, expected, rtol=30 * EPS)
    np.testing.assert_allclose(line.losses, np.array(expected)[:, 0], rtol=30 * EPS)
    assert line.coordinates.tolist() == plane.first.tolist() == u.tolist()
    assert plane.second.tolist() == v.tolist()


def test_slices_along_eigenvectors_have_their_curvature(x64):
    """L(c v) - L(0) = c g.v + lambda c^2 / 2 on a quadratic."""
    w, x, y = jax.tree.map(lambda a: a.astype(jnp.float64), regression())
    hessian = curvature.hessian(linear, square, w, x, y)
    top = linalg.top_eigenpairs(hessian, num=2, key=jax.random.key(0))
    plane = landscape.slice_2d(
        linear,
        square,
        w,
        x,
        y,
        directions=top.vectors,
        first=jnp.array([-2.0, 0.0, 2.0]),
        second=jnp.array([-1.0, 0.0, 1.0]),
    )
    assert plane.losses.dtype == jnp.float64
    left, here, right = plane.losses[:, 1]
    np.testing.assert_allclose((left + right - 2 * here) / 4, top.values[0], rtol=1e-9)
    left, here, right = plane.losses[1]
    np.testing.assert_allclose(left + right - 2 * here, top.values[1], rtol=1e-9)


def test_half_precision_is_summed_in_single():
    model = lambda w, x: x * w
    x = jnp.ones(3_000, jnp.bfloat16)
    line = landscape.slice_1d(
        model,
        lambda outputs, y: outputs,
        jnp.array(1.0, jnp.bfloat16),
        x,
        x,
        direction=jnp.array(1.0, jnp.bfloat16),
        coordinates=jnp.array([0.0, 1.0]),
        batch_size=7,
    )
    assert line.losses.dtype == jnp.float32
    assert line.losses.tolist() == [1.0, 2.0]


def test_new_parameters_cost_no_new_trace():
    count = 0

    def counted(w, x):
        nonlocal count
        count += 1
        return linear(w, x)

    def measure(seed):
        w, x, y = regression(seed)
        directions = landscape.filter_normalised(
            w, key=jax.random.key(seed), vectors="normalised"
        )
        grid = jnp.linspace(-1, 1, 3)
        landscape.slice_2d(
            counted, square, w, x, y, directions=directions, first=grid, second=grid
        )
        landscape.interpolate(counted, square, w, regression(seed + 5)[0], x, y, num=3)

    measure(0)
    first = count
    measure(1)
    assert count == first + 2  # the check of each call traces the shapes


def test_under_the_users_own_jit():
    w, x, y = regression()
    d = regression(1)[0]

    @jax.jit
    def measure(w):
        line = landscape.slice_1d(
            linear, square, w, x, y, direction=d, coordinates=np.array([0.0, 1.0])
        )
        path = stack(w, d, jax.tree.map(jnp.zeros_like, w))
        plane = landscape.trajectory_plane(path)
        seen = landscape.project(path, origin=w, directions=plane.directions)
        return line.losses, plane.rank, seen.distances[0]

    losses, rank, distance = measure(w)
    np.testing.assert_allclose(losses[0], mean_square(w, x, y), rtol=30 * EPS)
    assert (rank, distance) == (2, 0)


def test_sharded_data_give_the_same(eight_devices):
    w, x, y = regression(n=16)
    spread = NamedSharding(eight_devices, PartitionSpec("data"))
    far = jax.device_put((x, y), spread)
    options = {"direction": regression(1)[0], "coordinates": np.array([0.0, 1.0])}
    here = landscape.slice_1d(linear, square, w, x, y, **options)
    there = landscape.slice_1d(linear, square, w, *far, batch_size=1, **options)
    np.testing.assert_allclose(here.losses, there.losses, rtol=30 * EPS)


# BatchNorm


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=True):
        h = nn.Dense(4)(x)
        h = nn.BatchNorm(use_running_average=use_running_average, momentum=0.9)(h)
        return nn.Dense(1)(nn.relu(h))[:, 0]


def normed_problem():
    x = jax.random.normal(jax.random.key(0), (12, 3)) + 1
    module = Normed()
    variables = module.init(jax.random.key(1), x)
    apply_fn = lambda params, x, stats: module.apply(
        {"params": params, "batch_stats": stats}, x
    )

    def recompute(params, x):
        zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        everything = {"params": params, "batch_stats": zeros}
        _, updated = module.apply(
            everything, x, use_running_average=False, mutable=["batch_stats"]
        )
        return jax.tree.map(lambda a: a / (1 - 0.9), updated["batch_stats"])

    return module, variables, apply_fn, recompute, x, jnp.ones(12)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_statistics_of_batch_norm_belong_to_the_point(batch_size):
    """With statistics of all inputs, chunks or not: as in training mode."""
    module, variables, apply_fn, recompute, x, y = normed_problem()
    params = variables["params"]
    direction = jax.tree.map(lambda a: jnp.ones_like(a) / 10, params)
    line = landscape.slice_1d(
        apply_fn,
        square,
        params,
        x,
        y,
        direction=direction,
        coordinates=np.array([0.0, 2.0]),
        recompute=recompute,
        batch_size=batch_size,
    )
    for c, loss in zip(line.coordinates, line.losses, strict=True):
        at = jax.tree.map(lambda p, d, c=c: p + c * d, params, direction)
        outputs, _ = module.apply(
            {**variables, "params": at},
            x,
            use_running_average=False,
            mutable=["batch_stats"],
        )
        np.testing.assert_allclose(loss, jnp.mean(square(outputs, y)), rtol=1e-4)


def test_curves_train_with_statistics_of_the_batch():
    _, variables, apply_fn, recompute, x, y = normed_problem()
    ends = [variables["params"], jax.tree.map(jnp.negative, variables["params"])]
    curve = landscape.bezier_curve(
        apply_fn,
        square,
        *ends,
        x,
        y,
        optimizer=optax.sgd(0.1),
        num_steps=30,
        key=jax.random.key(0),
        examples_per_step=8,
        recompute=recompute,
        num=5,
    )
    straight = landscape.interpolate(
        apply_fn, square, *ends, x, y, recompute=recompute, num=5
    )
    np.testing.assert_allclose(curve.losses[0], straight.losses[0], rtol=1e-6)
    assert jnp.mean(curve.losses) < jnp.mean(straight.losses)


# Directions


def test_filters_have_the_length_of_those_of_the_parameters():
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    params = {
        "conv": {"kernel": draw(0, 3, 3, 2, 5) * 1e-25, "bias": draw(1, 5)},
        "dense": {"kernel": draw(2, 6, 4).at[:, 1].set(0), "bias": jnp.zeros(4)},
        "scalar": jnp.array(2.0),
    }
    found = landscape.filter_normalised(
        params, key=jax.random.key(3), num=3, vectors="normalised"
    )
    for name, axes in (("conv", (0, 1, 2)), ("dense", (0,))):
        kernel = np.asarray(params[name]["kernel"], float)
        lengths = np.sqrt(np.sum(kernel**2, axes))
        for i in range(3):
            direction = np.asarray(found[name]["kernel"][i], float)
            ours = np.sqrt(np.sum(direction**2, axes))
            np.testing.assert_allclose(ours, lengths, rtol=10 * EPS)
    biases = np.linalg.norm(found["conv"]["bias"], axis=1)
    expected = [np.linalg.norm(params["conv"]["bias"])] * 3
    np.testing.assert_allclose(biases, expected, rtol=10 * EPS)
    assert not found["dense"]["bias"].any()
    np.testing.assert_allclose(np.abs(found["scalar"]), [2, 2, 2], rtol=10 * EPS)
    flat = np.asarray(found["conv"]["kernel"] * 1e25).reshape(3, -1)
    cosines = np.corrcoef(flat)
    assert np.abs(cosines[np.triu_indices(3, 1)]).max() < 0.5  # independent


def test_vectors_stay_where_they_are_unless_asked():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(3)}
    found = landscape.filter_normalised(params, key=jax.random.key(0), num=1)
    assert not found["bias"].any()
    assert not found["scale"].any()
    assert found["kernel"].shape == (1, 2, 3)
    assert found["kernel"].all()


# Bad input


def bad_slice(**changes):
    w, x, y = regression()
    arguments = {"direction": w, "coordinates": np.linspace(0, 1, 3)} | changes
    return landscape.slice_1d(linear, square, w, x, y, **arguments)


def test_slices_refuse(user_land):
    w, x, y = regression()
    with pytest.raises(ValueError, match="`direction` must have the structure"):
        bad_slice(direction={"a": w["a"]})
    with pytest.raises(ValueError, match=r"`direction\['a'\]` must have shape \(3,\)"):
        bad_slice(direction={**w, "a": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"`coordinates` must be .* shape \(1,\)"):
        bad_slice(coordinates=np.ones(1))
    with pytest.raises(ValueError, match=r"`coordinates` must be .* shape \(2, 2\)"):
        bad_slice(coordinates=np.ones((2, 2)))
    for numbers in ([0, 1j], [True, False], ["a", "b"], jnp.array([0, 1j])):
        with pytest.raises(ValueError, match="`coordinates` must be real numbers"):
            bad_slice(coordinates=numbers)
    with pytest.raises(ValueError, match="`points_at_once` must be an integer"):
        bad_slice(points_at_once=0)
    with pytest.raises(ValueError, match="`batch_size` must be None"):
        bad_slice(batch_size=0)
    imaginary = jax.tree.map(lambda leaf: leaf * 1j, w)
    grid = {"first": np.ones(2), "second": np.ones(2)}
    for directions, message in (
        (w, r"`directions\['a'\]` must hold 3 of the shape \(3,\)"),
        (stack(w), "`directions` must hold two directions on axis 0, but holds 1"),
        ((w, w), "`directions` must have the structure of the parameters"),
        (
            stack(w, imaginary),
            r"`directions\['a'\]` must be real, but has dtype complex64",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            landscape.slice_2d(linear, square, w, x, y, directions=directions, **grid)


def test_directions_refuse(user_land):
    params = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="`key` must be one typed random key"):
        landscape.filter_normalised(params, key=0)
    with pytest.raises(ValueError, match="`num` must be an integer"):
        landscape.filter_normalised(params, key=jax.random.key(0), num=0)
    with pytest.raises(ValueError, match="`vectors` must be 'zero' or 'normalised'"):
        landscape.filter_normalised(params, key=jax.random.key(0), vectors="keep")
