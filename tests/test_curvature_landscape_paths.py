"""Training paths on planes, and what lies between networks, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxtheory import curvature, dynamics

landscape = curvature.landscape
EPS = float(np.finfo(np.float32).eps)
ONE = jnp.ones(1)


def square(outputs, y):
    return (outputs - y) ** 2


def linear(w, x):
    return x @ w


def regression(seed=0, n=10):
    keys = jax.random.split(jax.random.key(seed), 3)
    draw = jax.random.normal
    return draw(keys[0], (3,)), draw(keys[1], (n, 3)), draw(keys[2], (n,))


# Trajectories


def path_of(r=30, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(r, 40)) * np.geomspace(1, 0.1, 40)
    flat = (np.cumsum(steps, axis=0) + offset).astype(np.float32)
    return {"a": flat[:, :10].reshape(r, 2, 5), "b": flat[:, 10:]}, flat


@pytest.mark.parametrize("centre", ["mean", "last"])
def test_principal_directions_are_singular_vectors(centre):
    iterates, flat = path_of()
    plane = landscape.trajectory_plane(iterates, num_directions=3, centre=centre)
    steps = flat.astype(float) - flat[-1]
    centred = steps - steps.mean(0) if centre == "mean" else steps
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    shares = values**2 / np.sum(values**2)
    np.testing.assert_allclose(plane.explained_variance, shares[:3], rtol=1e-5)
    ours = np.asarray(jax.vmap(lambda d: ravel_pytree(d)[0])(plane.directions))
    signs = np.sign(vectors[:3] @ steps[0])
    np.testing.assert_allclose(ours, vectors[:3] * signs[:, None], atol=1e-5)
    coordinates = steps @ (vectors[:3] * signs[:, None]).T
    np.testing.assert_allclose(plane.coordinates, coordinates, atol=1e-4)
    assert plane.rank == 3
    assert plane.coordinates[-1].tolist() == [0, 0, 0]
    assert (plane.origin["b"] == iterates["b"][-1]).all()
    seen = landscape.project(iterates, origin=plane.origin, directions=plane.directions)
    np.testing.assert_allclose(seen.coordinates, plane.coordinates, atol=1e-4)
    left = np.linalg.norm(steps - coordinates @ (vectors[:3] * signs[:, None]), axis=1)
    np.testing.assert_allclose(seen.distances, left, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_of_a_path_stay_in_range(scale):
    iterates, _ = path_of()
    scaled = jax.tree.map(lambda a: np.float32(scale) * a, iterates)
    plane, expected = (landscape.trajectory_plane(p) for p in (scaled, iterates))
    found = plane.explained_variance
    np.testing.assert_allclose(found, expected.explained_variance, rtol=1e-5)
    np.testing.assert_allclose(
        plane.coordinates / scale, expected.coordinates, rtol=1e-3, atol=1e-4
    )


def test_a_straight_path_has_one_direction():
    iterates = jnp.outer(jnp.arange(5.0), jnp.array([3.0, 4.0, 0.0]))
    plane = landscape.trajectory_plane(iterates)
    assert plane.rank == 1
    assert not plane.directions[1].any()
    np.testing.assert_allclose(plane.explained_variance, [1, 0], atol=10 * EPS)
    np.testing.assert_allclose(plane.coordinates[:, 0], [20, 15, 10, 5, 0], rtol=1e-6)


@pytest.mark.parametrize("centre", ["mean", "last"])
def test_a_random_walk_explains_what_theory_says(centre):
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(300, 20_000)), axis=0).astype(np.float32)
    plane = landscape.trajectory_plane(walk, num_directions=3, centre=centre)
    expected = landscape.random_walk_variance(3, centre=centre)
    np.testing.assert_allclose(plane.explained_variance, expected, rtol=0.03)
    k = np.arange(1, 100_000)
    shares = landscape.random_walk_variance(len(k), centre=centre)
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-5)


def test_the_recorded_path_of_training_lies_on_its_slice():
    """On a quadratic of two parameters the plane shows the losses themselves."""
    model = lambda w, x: x @ w
    x, y = jnp.array([[1.0, 0.2], [0.0, 0.6]]), jnp.array([0.5, -0.5])
    optimizer = optax.sgd(0.2)
    history = dynamics.train(
        dynamics.supervised(model, square),
        dynamics.init(optimizer, jnp.array([2.0, -1.0])),
        optimizer,
        (x, y),
        num_steps=20,
        key=jax.random.key(0),
        batch_size=2,
        record={"params": lambda state: state.params},
        record_every=5,
    )
    path = history.records["params"]
    plane = landscape.trajectory_plane(path)
    first, second = plane.coordinates.T
    over = landscape.slice_2d(
        model,
        square,
        plane.origin,
        x,
        y,
        directions=plane.directions,
        first=first,
        second=second,
    )
    expected = [np.mean((np.asarray(x) @ w - np.asarray(y)) ** 2) for w in path]
    np.testing.assert_allclose(np.diag(over.losses), expected, rtol=1e-4)
    np.testing.assert_allclose(plane.explained_variance.sum(), 1, rtol=1e-5)


def test_projection_on_dependent_directions_is_the_shortest():
    seen = landscape.project(
        jnp.array([[2.0, 3.0]]),
        origin=jnp.zeros(2),
        directions=jnp.array([[1.0, 0.0], [1.0, 0.0]]),
    )
    np.testing.assert_allclose(seen.coordinates, [[1, 1]], rtol=1e-5)
    np.testing.assert_allclose(seen.distances, [3], rtol=1e-5)


# Between two networks


def test_a_convex_loss_has_no_barrier():
    w, x, y = regression()
    between = landscape.interpolate(linear, square, w, regression(1)[0], x, y, num=7)
    assert between.barrier == 0
    expected = jnp.mean(square(x @ w, y))
    np.testing.assert_allclose(between.losses[0], expected, rtol=30 * EPS)


def test_the_barrier_of_two_wells_of_unequal_depth():
    """L(w) = (w^2 - 1)^2 + w / 4 from -1 to 1: 1 at the middle over the line 0."""
    model = lambda w, x: x * w
    loss = lambda outputs, y: (outputs**2 - 1) ** 2 + outputs / 4
    ends = (jnp.array(-1.0), jnp.array(1.0))
    between = landscape.interpolate(model, loss, *ends, ONE, ONE, num=9)
    a = np.linspace(0, 1, 9)
    w = 2 * a - 1
    np.testing.assert_allclose(between.losses, (w**2 - 1) ** 2 + w / 4, rtol=10 * EPS)
    np.testing.assert_allclose(between.barrier, 1, rtol=10 * EPS)


def test_a_model_that_overflows_shows_it():
    model = lambda w, x: jnp.exp(x * w)
    loss = lambda outputs, y: outputs
    ends = (jnp.array(0.0), jnp.array(200.0))
    between = landscape.interpolate(model, loss, *ends, ONE, ONE, num=3)
    assert between.losses.tolist()[1:] == [np.inf, np.inf]
    assert np.isnan(between.barrier)


def ring(outputs, y):
    return (jnp.sum(outputs**2, axis=-1) - y) ** 2


def scaled_rows(w, x):
    return x * w[None]


ADAM = optax.adam(0.02)


def around_the_ring(end, **options):
    """Two minima on the unit circle, of which (|w|^2 - 1)^2 is the valley."""
    ends = (jnp.array([1.0, 0.0]), jnp.array(end))
    arguments = (scaled_rows, ring, *ends, jnp.ones((1, 2)), ONE)
    straight = landscape.interpolate(*arguments, num=51)
    curve = landscape.bezier_curve(
        *arguments,
        optimizer=ADAM,
        num_steps=1_000,
        key=jax.random.key(0),
        num=51,
        **options,
    )
    return ends, straight, curve


def test_a_curve_finds_its_way_round():
    ends, straight, curve = around_the_ring([-0.5, 0.75**0.5])
    # The middle of the chord is cos(60) = 1/2 from the centre.
    np.testing.assert_allclose(straight.barrier, (1 - 1 / 4) ** 2, rtol=1e-4)
    assert curve.barrier < 0.05
    assert curve.largest_loss == curve.losses.max()
    assert curve.training_losses.shape == (1_000,)
    assert curve.training_losses[-100:].mean() < 0.1 * curve.training_losses[0]
    points = [landscape.bezier_point(ends[0], curve.bend, ends[1], t) for t in (0, 1)]
    np.testing.assert_allclose(np.stack(points), np.stack(ends), rtol=EPS)
    t = np.linspace(0, 1, 51)[:, None]
    a, bend, b = (np.asarray(p, float)[None] for p in (ends[0], curve.bend, ends[1]))
    path = (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b
    losses = (np.sum(path**2, axis=1) - 1) ** 2
    np.testing.assert_allclose(curve.losses, losses, atol=1e-6)


def test_a_symmetric_start_needs_a_bend_beside_the_line():
    _, straight, stuck = around_the_ring([-1.0, 0.0])
    np.testing.assert_allclose(straight.barrier, 1, rtol=1e-5)
    assert stuck.barrier > 0.9
    _, _, curve = around_the_ring([-1.0, 0.0], bend=jnp.array([0.0, 0.1]))
    # With the bend at (0, b) the squared radius is (1-2t)^2 + 4 b^2 t^2 (1-t)^2.
    t, b = np.linspace(0, 1, 201), np.linspace(1, 3, 401)[:, None]
    radius = ((1 - 2 * t) ** 2)[None] + 4 * b**2 * (t**2 * (1 - t) ** 2)[None]
    best = b[np.argmin(np.mean((radius - 1) ** 2, axis=1)), 0]
    np.testing.assert_allclose(curve.bend, [0, best], atol=0.1)
    assert curve.barrier < 0.25


def test_an_iterate_that_is_not_finite_leaves_the_others():
    path = path_of(5)[1]
    given = {"origin": path[4], "directions": jnp.eye(path.shape[1])[:2]}
    whole = landscape.project(path, **given)
    for bad in (np.nan, np.inf):
        broken = jnp.asarray(path).at[1].set(bad)
        seen = landscape.project(broken, **given)
        for one, other in zip(seen, whole, strict=True):
            others = np.array([0, 2, 3, 4])
            np.testing.assert_allclose(one[others], other[others], rtol=1e-5)
            assert not np.isfinite(one[1]).any()


# Bad input


def test_trajectories_refuse(user_land):
    path = path_of(4)[1]
    with pytest.raises(ValueError, match=r"at least three points .* but holds 2"):
        landscape.trajectory_plane(path[:2])
    with pytest.raises(ValueError, match="`num_directions` must be at most 3, with 4"):
        landscape.trajectory_plane(path, num_directions=4)
    with pytest.raises(ValueError, match="`iterates` must move"):
        landscape.trajectory_plane(np.ones((4, 3), np.float32))
    for bad in (np.nan, np.inf):
        broken = jnp.asarray(path).at[jnp.array([1, 3])].set(bad)
        with pytest.raises(ValueError, match=r"`iterates` must be finite, .* 1, 3\."):
            landscape.trajectory_plane(broken)
    points = [{"a": jnp.ones((3, 2)), "b": jnp.ones(4)}] * 4
    for iterates in (points, jnp.array(1.0)):
        with pytest.raises(ValueError, match=r"`iterates` must be one .* Stack a list"):
            landscape.trajectory_plane(iterates)
    with pytest.raises(ValueError, match=r"`iterates` must be floating-point"):
        landscape.trajectory_plane(np.ones((4, 3), int))
    for name in ("iterates", "origin", "directions"):
        arguments = {"origin": jnp.ones(3), "directions": jnp.ones((1, 3))}
        arguments = {"iterates": path[:, :3], **arguments}
        arguments[name] = arguments[name] * 1j
        with pytest.raises(ValueError, match=rf"`{name}` must be .* dtype complex64"):
            landscape.project(**arguments)
    for call in (
        lambda: landscape.trajectory_plane(path, centre="first"),
        lambda: landscape.random_walk_variance(centre="first"),
    ):
        with pytest.raises(ValueError, match="`centre` must be 'mean' or 'last'"):
            call()
    with pytest.raises(ValueError, match=r"`iterates` must hold 4 .* shape \(3,\)"):
        landscape.project(path, origin=jnp.ones(3), directions=jnp.ones((1, 3)))


def test_interpolation_and_curves_refuse(user_land):
    w, x, y = regression()
    arguments = (linear, square, w, w, x, y)
    with pytest.raises(ValueError, match="`num` must be an integer of at least 2"):
        landscape.interpolate(*arguments, num=1)
    with pytest.raises(ValueError, match="`params_b` must have the structure"):
        landscape.interpolate(linear, square, w, (w,), x, y)
    with pytest.raises(ValueError, match="`params_a` must be floating-point"):
        landscape.interpolate(linear, square, w.astype(int), w, x, y)
    for t in (1j, "a", None, jnp.ones(2)):
        with pytest.raises(ValueError, match="`t` must be one real number"):
            landscape.bezier_point(w, None, w, t)
    training = {"optimizer": optax.sgd(0.1), "num_steps": 1, "key": jax.random.key(0)}
    for changes, message in (
        ({"examples_per_step": 11}, "`examples_per_step` must be between 1 and the 10"),
        ({"bend": (w,)}, "`bend` must have the structure"),
        ({"bend": w.astype(int)}, "`bend` must be floating-point"),
        ({"optimizer": optax.adam}, "`optimizer` must be an optax .* type function"),
        ({"num_steps": 0}, "`num_steps` must be an integer"),
        ({"key": 0}, "`key` must be one typed random key"),
    ):
        with pytest.raises(ValueError, match=message):
            landscape.bezier_curve(*arguments, **(training | changes))
