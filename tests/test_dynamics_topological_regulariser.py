"""The topological regulariser: trees of SciPy, finite differences, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from jaxtheory import dynamics
from jaxtheory.dynamics import topology

WINDOW, LAMBDA = 5, 0.3
TARGET = np.array([1.0, -2.0, 0.5, 3.0])


def bowl(params, model_state, batch, key):
    shift = jax.random.normal(key, (4,), params["a"].dtype)
    w = jnp.concatenate([params["a"], params["b"].reshape(-1)])
    value = jnp.sum((w - jnp.asarray(TARGET, w.dtype)) ** 2) / 2 + 0.3 * shift @ w
    return value, model_state + 1


def make(**options):
    options = {"strength": LAMBDA, "window": WINDOW} | options
    return dynamics.topological_regulariser(bowl, **options)


def start(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=2), dtype),
        "b": jnp.asarray(rng.normal(size=(1, 2)), dtype),
    }


def scipy_e_alpha(points, alpha):
    tree = minimum_spanning_tree(squareform(pdist(points)))
    return np.sum(tree.data**alpha)


def vector(params):
    flat = [np.asarray(a).reshape(len(a), -1) for a in (params["a"], params["b"])]
    return np.concatenate(flat, axis=1).astype(np.float64)


def train(objective, state, optimizer, num_steps, **options):
    return dynamics.train(
        objective,
        state,
        optimizer,
        jnp.zeros((1, 1)),
        num_steps=num_steps,
        key=jax.random.key(7),
        record_every=3,
        progress=False,
        **options,
    )


def begin(objective, optimizer, params):
    memory = objective.init(params, jnp.array(0))
    return dynamics.init(optimizer, params, model_state=memory)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_value_in_training_is_the_tree_of_the_last_iterates(alpha):
    objective, optimizer = make(alpha=alpha), optax.sgd(0.3)
    trace = {
        "w": lambda s: s.params,
        "plain": lambda s: s.model_state.model_state,
    }
    history = train(
        objective, begin(objective, optimizer, start()), optimizer, 12, trace=trace
    )
    path = vector(history.trace["w"])
    for t, loss in enumerate(history.trace["loss"]):
        noise = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 1), t)
        key, _ = jax.random.split(noise)
        now = jax.tree.map(lambda a, t=t: jnp.asarray(a[t]), history.trace["w"])
        plain = float(bowl(now, 0, None, key)[0])
        iterates = path[max(0, t - WINDOW + 1) : t + 1]
        want = scipy_e_alpha(iterates, alpha) if t else 0
        assert (loss - plain) / LAMBDA == pytest.approx(want, abs=2e-5)
    assert history.trace["plain"].tolist() == list(range(12))
    memory = history.state.model_state
    assert int(memory.num_seen) == 12
    # The ring: rows of the last four iterates, the oldest where the next one goes.
    moved = path - path[0]
    np.testing.assert_allclose(memory.points, moved[[8, 9, 10, 11]], atol=1e-6)
    want = squareform(pdist(moved[8:12]))
    np.testing.assert_allclose(memory.distances, want, atol=1e-6)


def random_memory(objective, params, seed=1):
    """A full memory of iterates around the parameters."""
    memory = objective.init(params, jnp.array(0))
    rng = np.random.default_rng(seed)
    points = jnp.asarray(rng.normal(size=memory.points.shape), memory.points.dtype)
    distances = topology.pairwise_distances(points)
    num = jnp.int32(memory.points.shape[0])
    return memory._replace(points=points, distances=distances, num_seen=num)


@pytest.mark.parametrize("of", ["e_alpha", "ph_dimension"])
def test_gradient_is_that_of_finite_differences(x64, of):
    objective = make(of=of, window=40, alpha=0.7)
    params = start(jnp.float64)
    memory = random_memory(objective, params)
    inner = jax.random.split(jax.random.key(0))[0]
    plain = lambda p: bowl(p, 0, None, jax.random.clone(inner))[0]

    @jax.jit
    def penalty(p):
        value = objective(p, memory, None, jax.random.key(0))[0]
        return (value - plain(p)) / LAMBDA

    # Away from where the memory begins.
    moved = jax.tree.map(lambda a: a + 0.1, params)
    gradient = jax.grad(penalty)(moved)
    for name, index in (("a", (0,)), ("b", (0, 1))):
        at = lambda h, n=name, i=index: float(
            penalty(moved | {n: moved[n].at[i].add(h)})
        )
        slope = (at(1e-6) - at(-1e-6)) / 2e-6
        assert float(gradient[name][index]) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradient))


def test_pull_on_a_straight_path_is_a_unit_vector():
    flat = lambda w, model_state, batch, key: (jnp.sum(0 * w), model_state)
    objective = dynamics.topological_regulariser(flat, strength=2.0, window=4)
    memory = objective.init(jnp.zeros(2))
    value = jax.jit(jax.value_and_grad(objective, has_aux=True))
    pulls = []
    for t in range(5):
        w = jnp.array([3e-3, 4e-3]) * t
        (_, memory), gradient = value(w, memory, None, jax.random.key(0))
        pulls.append(gradient)
    np.testing.assert_array_equal(pulls[0], 0)
    np.testing.assert_allclose(pulls[1:], [[1.2, 1.6]] * 4, rtol=1e-4)


def test_squared_edges_are_negative_momentum():
    # Down a slope in one dimension, where the newest hangs on the one before.
    slope = lambda w, model_state, batch, key: (jnp.sum((w - 3) ** 2) / 2, model_state)
    objective = dynamics.topological_regulariser(
        slope, strength=2.0, window=4, alpha=2.0
    )
    params, optimizer = jnp.zeros(1), optax.sgd(0.05)
    trace = {"w": lambda s: s.params}
    state = dynamics.init(optimizer, params, model_state=objective.init(params))
    found = train(objective, state, optimizer, 9, trace=trace)
    momentum = optax.sgd(0.05, momentum=-2 * 0.05 * 2.0)
    state = dynamics.init(momentum, params)
    want = train(slope, state, momentum, 9, trace=trace)
    assert np.all(np.diff(want.trace["w"][:, 0]) > 0)
    np.testing.assert_allclose(found.trace["w"], want.trace["w"], rtol=1e-5)


def test_dimension_is_off_until_the_window_is_full():
    objective = make(of="ph_dimension", window=30)
    optimizer = optax.sgd(0.3)
    state = begin(objective, optimizer, start())
    history = train(objective, state, optimizer, 33)
    plain = dynamics.topological_regulariser(bowl, strength=0.0, window=30)
    base = train(plain, begin(plain, optimizer, start()), optimizer, 33)
    loss, other = history.trace["loss"], base.trace["loss"]
    np.testing.assert_array_equal(loss[:29], other[:29])
    assert np.all(np.isfinite(loss))
    assert 0.3 < (loss[29] - other[29]) / LAMBDA < 10
    # Two iterates that coincide: of them there is no dimension, and no NaN either.
    memory = history.state.model_state
    points = memory.points.at[1].set(memory.points[0])
    memory = memory._replace(
        points=points, distances=topology.pairwise_distances(points)
    )
    value = lambda p: objective(p, memory, None, jax.random.key(0))[0]
    key = jax.random.split(jax.random.key(0))[0]
    value, gradient = jax.value_and_grad(value)(history.state.params)
    assert float(value) == float(bowl(history.state.params, 0, None, key)[0])
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    # One that moved away from many that are the same: subsets without it are a point.
    memory = memory._replace(points=0 * points, distances=0 * memory.distances)
    value = lambda p, key: objective(p, memory, None, key)[0]
    keys = jax.random.split(jax.random.key(0), 40)
    gradients = jax.vmap(jax.grad(value), (None, 0))(history.state.params, keys)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_dimension_is_that_of_the_distances():
    objective, params = make(of="ph_dimension", window=50), start()
    memory = random_memory(objective, params)
    value, _ = objective(params, memory, None, jax.random.key(0))
    key, subsets = jax.random.split(jax.random.key(0))
    others = np.asarray(memory.points)
    points = np.concatenate([others, 0 * others[:1]])
    want = topology.ph_dimension_penalty(
        squareform(pdist(points)).astype("f4"),
        key=subsets,
        sizes=tuple(range(5, 50, 5)),
    )
    found = (value - bowl(params, 0, None, key)[0]) / LAMBDA
    assert float(found) == pytest.approx(float(want), rel=1e-4)


def test_training_resumes_and_runs_of_a_population_remember(tmp_path):
    objective, optimizer = make(), optax.sgd(0.3)
    whole = train(objective, begin(objective, optimizer, start()), optimizer, 12)
    folder = tmp_path / "run"
    half = train(
        objective, begin(objective, optimizer, start()), optimizer, 6, store=folder
    )
    rest = train(objective, half.state, optimizer, 6)
    kept = train(
        objective,
        begin(objective, optimizer, start()),
        optimizer,
        12,
        store=folder,
        resume=True,
    )
    np.testing.assert_array_equal(rest.trace["loss"], whole.trace["loss"][6:])
    np.testing.assert_array_equal(kept.trace["loss"], whole.trace["loss"])
    params = jax.tree.map(lambda a: jnp.stack([a, a]), start())
    memory = jax.vmap(objective.init)(params, jnp.zeros(2, int))
    many = dynamics.train_population(
        objective,
        dynamics.init_population(optimizer, params, model_state=memory),
        optimizer,
        jnp.zeros((1, 1)),
        num_steps=12,
        keys=jax.vmap(jax.random.key)(jnp.array([7, 8])),
        record_every=3,
        progress=False,
    )
    np.testing.assert_allclose(many.trace["loss"][:, 0], whole.trace["loss"], rtol=1e-4)
    assert np.all(abs(many.trace["loss"][:, 1] - whole.trace["loss"]) > 1e-3)


def test_sketched_iterates_are_as_far_apart():
    rng = np.random.default_rng(0)
    path = jnp.asarray(rng.normal(size=(4, 3000)).cumsum(axis=0), jnp.float32)
    flat = lambda w, model_state, batch, key: (jnp.sum(0 * w), model_state)
    values, gradients = [], []
    for sketch in (None, dynamics.sketch(dim=1024)):
        objective = dynamics.topological_regulariser(
            flat, strength=1.0, window=4, sketch=sketch
        )
        memory = objective.init(jnp.zeros(3000))
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        for w in path:
            (value, memory), gradient = step(w, memory, None, jax.random.key(0))
        values.append(float(value))
        gradients.append(np.asarray(gradient))
        assert memory.points.shape == (3, 3000 if sketch is None else 1024)
    error = dynamics.sketch(dim=1024).relative_error
    assert values[1] == pytest.approx(values[0], rel=4 * error)
    # The gradient is S^T S times the whole one: right in the mean, and longer.
    whole, sketched = gradients
    longer = (3000 / 1024) ** 0.5
    ratio = np.linalg.norm(sketched) / np.linalg.norm(whole)
    assert ratio == pytest.approx(longer, rel=0.05)
    assert whole @ sketched / (whole @ whole) == pytest.approx(1, rel=4 * error)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strength": -1.0}, "`strength` must be finite, at least 0"),
        ({"alpha": 0.0}, "`alpha` must be positive"),
        ({"window": 2}, "`window` must be an integer of at least 3"),
        ({"window": 29, "of": "ph_dimension"}, "`window` must be .* at least 30"),
        ({"of": "length"}, "`of` must be one of 'e_alpha', 'ph_dimension'"),
        ({"sketch": 64}, "`sketch` must be what `dynamics.sketch"),
    ],
)
def test_bad_input(user_land, options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (lambda w: jnp.sum(w), r"`objective` must return a pair"),
        (lambda w: (w, ()), r"`objective` must return a scalar.*\(2,\)"),
        (lambda w: (jnp.sum(w), w), r"`objective` must return a model state like"),
    ],
)
def test_what_is_no_objective_is_named(user_land, result, match):
    objective = dynamics.topological_regulariser(
        lambda w, state, batch, key: result(w), strength=1.0, window=3
    )
    memory = objective.init(jnp.ones(2))
    with pytest.raises(ValueError, match=match):
        objective(jnp.ones(2), memory, None, jax.random.key(0))


def test_memory_must_be_that_of_the_parameters(user_land):
    objective, params, key = make(), start(), jax.random.key(0)
    other = make(window=6).init(params)
    for memory in ((), other, objective.init({"a": jnp.ones(3)})):
        with pytest.raises(ValueError, match="`model_state` must be what `init` of"):
            objective(params, memory, None, key)
    with pytest.raises(ValueError, match="`params` must hold at least one array"):
        objective.init({})
