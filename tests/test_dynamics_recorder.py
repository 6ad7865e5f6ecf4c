"""Measurements for the recorder: snapshots, projections, losses, gradient noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxtheory import dynamics
from jaxtheory.dynamics._held import Held

KEY = jax.random.key(7)
N, D = 12, 3
OPTIMIZER = optax.sgd(0.05)


def normal(stream, shape):
    return jax.random.normal(jax.random.fold_in(KEY, stream), shape)


X, Y = normal(0, (N, D)), normal(1, (N,))


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def squared_error(outputs, targets):
    return (outputs - targets) ** 2


def start():
    return {"w": normal(2, (D, 4)), "v": normal(3, (4,))}


def state_at(params, step=0):
    state = dynamics.init(OPTIMIZER, start())
    return state._replace(params=params, step=jnp.asarray(step))


MOVED = {"w": normal(4, (D, 4)), "v": normal(5, (4,))}
STATE = state_at(jax.tree.map(jnp.add, start(), MOVED))
STATISTICS = {"batch_size": 4, "num_batches": 5, "key": jax.random.key(3)}


def statistics(**changes):
    return dynamics.gradient_statistics(
        model, squared_error, X, Y, **STATISTICS | changes
    )


def test_all_measurements_in_one_run_and_one_trace_for_two(tmp_path):
    traces = []

    def counted(params, x):
        traces.append(0)
        return model(params, x)

    def train(seed, store=None):
        record = {
            "params": dynamics.snapshots(),
            "w": dynamics.snapshots(is_w),
            "path": dynamics.sketch(dim=8),
            "axes": dynamics.projections(np.eye(2, 16, dtype=np.float32)),
            "losses": dynamics.example_losses(
                counted, squared_error, X, Y, num=5, key=jax.random.key(1)
            ),
            "noise": dynamics.gradient_statistics(
                counted, squared_error, X, Y, **STATISTICS
            ),
        }
        return dynamics.train(
            OBJECTIVE,
            dynamics.init(OPTIMIZER, jax.tree.map(lambda a: a * (1 + seed), start())),
            OPTIMIZER,
            (X, Y),
            num_steps=4,
            batch_size=3,
            key=jax.random.key(seed),
            record=record,
            record_every=2,
            store=store,
            progress=False,
        )

    history = train(0, tmp_path / "run")
    num = len(traces)
    assert num > 0
    train(1)
    assert len(traces) == num
    records = history.records
    np.testing.assert_array_equal(records["w"]["['w']"], records["params"]["w"])
    moved = [
        a.reshape(3, -1) - a[:1].reshape(1, -1) for a in records["params"].values()
    ]
    axes = np.concatenate(moved, axis=1)[:, :2]
    np.testing.assert_allclose(records["axes"], axes, rtol=1e-6)
    assert records["losses"].shape == (3, 5)
    noise = records["noise"]
    assert noise.noise.shape == (3, 5, 128)
    assert noise.covariance_trace.num_samples.tolist() == [5, 5, 5]
    loaded = dynamics.load(tmp_path / "run", lazy=True)
    on_disk = loaded.records["noise"]["covariance_trace"]["value"]
    np.testing.assert_array_equal(on_disk, noise.covariance_trace.value)


def is_w(path):
    return "w" in path


OBJECTIVE = dynamics.supervised(model, squared_error)


def test_snapshots_are_the_parameters():
    assert dynamics.snapshots()(STATE) is STATE.params
    assert [*dynamics.snapshots(is_w)(STATE)] == ["['w']"]
    assert dynamics.snapshots(is_w) == dynamics.snapshots(is_w) != dynamics.snapshots()
    with pytest.raises(ValueError, match="`select` must choose at least one leaf"):
        dynamics.snapshots(lambda path: "z" in path)(STATE)


@pytest.mark.parametrize("as_matrix", [True, False])
def test_projections_are_inner_products(as_matrix):
    rows = np.asarray(normal(6, (3, 16)))
    unravel = ravel_pytree(start())[1]
    directions = (
        jnp.asarray(rows) if as_matrix else jax.vmap(unravel)(jnp.asarray(rows))
    )
    measured = dynamics.projections(directions)(STATE)
    moved = np.asarray(ravel_pytree(MOVED)[0], np.float64)
    # The displacement was rounded when it was added to the start.
    np.testing.assert_allclose(measured, rows.astype(float) @ moved, atol=1e-5)
    doubled = dynamics.projections(directions, of=lambda s: s.params)(STATE)
    params = np.asarray(ravel_pytree(STATE.params)[0], np.float64)
    np.testing.assert_allclose(doubled, rows.astype(float) @ params, atol=1e-5)


def test_directions_that_do_not_fit(user_land):
    project = dynamics.projections
    with pytest.raises(ValueError, match=r"matrix \[k, 16\] or a pytree like what is"):
        project(jnp.ones((2, 15)))(STATE)
    with pytest.raises(ValueError, match="same number k >= 1 of directions"):
        project({"w": jnp.ones((2, D, 4)), "v": jnp.ones((3, 4))})
    with pytest.raises(ValueError, match="same number k >= 1 of directions"):
        project(jnp.ones((0, 16)))
    with pytest.raises(ValueError, match="same number k >= 1 of directions"):
        project(jnp.ones(()))
    with pytest.raises(ValueError, match="must be finite, but has 2 entries"):
        project(jnp.array([[1.0, jnp.nan, jnp.inf]]))
    with pytest.raises(ValueError, match="must be floating-point"):
        project(jnp.ones((2, 16), int))


@pytest.mark.parametrize("batch_size", [None, 5])
def test_losses_of_all_examples(batch_size):
    measure = dynamics.example_losses(model, squared_error, X, Y, batch_size=batch_size)
    params = jax.tree.map(np.asarray, STATE.params)
    outputs = np.tanh(np.asarray(X) @ params["w"]) @ params["v"]
    expected = (outputs - np.asarray(Y)) ** 2
    np.testing.assert_allclose(measure(STATE), expected, rtol=1e-4)
    assert measure.indices.tolist() == list(range(N))


def test_a_subsample_is_drawn_once():
    draw = lambda seed, num=5, x=X: dynamics.example_losses(
        model, squared_error, x, Y, num=num, key=jax.random.key(seed)
    )
    measure, whole = draw(1), dynamics.example_losses(model, squared_error, X, Y)
    assert len(set(measure.indices.tolist())) == 5
    assert (np.diff(measure.indices) > 0).all()
    np.testing.assert_allclose(
        measure(STATE), np.asarray(whole(STATE))[measure.indices], rtol=1e-6
    )
    assert draw(1) == measure
    assert hash(draw(1)) == hash(measure)
    assert draw(1, x=X + 1) != measure
    assert draw(2) != measure != draw(1, num=6)
    assert draw(1, num=N).indices.tolist() == list(range(N))


def test_bad_subsamples(user_land):
    losses = lambda **o: dynamics.example_losses(model, squared_error, X, Y, **o)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="at most the number of examples, 12, but"):
        losses(num=13, key=key)
    with pytest.raises(ValueError, match="`num` must be an integer of at least 1"):
        losses(num=0, key=key)
    with pytest.raises(ValueError, match="`key` draws `num` examples"):
        losses(key=key)
    with pytest.raises(ValueError, match="`key` must be one typed random key"):
        losses(num=2)
    with pytest.raises(ValueError, match="`key` must have values, but is traced"):
        jax.jit(lambda key: losses(num=2, key=key)(STATE))(key)
    with pytest.raises(ValueError, match="as many examples"):
        dynamics.example_losses(model, squared_error, X, Y[:3])
    wrong = dynamics.example_losses(model, lambda out, y: jnp.sum(out - y), X, Y)
    with pytest.raises(ValueError, match="one loss per example"):
        wrong(STATE)


def per_example_gradients(params):
    """One row for each example, in double precision by hand."""
    w, v = (np.asarray(params[name], np.float64) for name in "wv")
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    hidden = np.tanh(x @ w)
    error = 2 * (hidden @ v - y)
    of_v = error[:, None] * hidden
    back = error[:, None] * v * (1 - hidden**2)
    of_w = np.einsum("nd,nh->ndh", x, back).reshape(N, -1)
    return np.concatenate([of_v, of_w], axis=1)


def test_gradient_statistics_of_drawn_minibatches():
    """The documented draw, by hand; a projection on all axes is the noise itself."""
    state = state_at(STATE.params, step=6)
    measure = statistics(onto=dynamics.projections(jnp.eye(16)))
    result = jax.jit(measure)(state)
    gradients = per_example_gradients(state.params)
    mean = gradients.mean(0)
    key = jax.random.fold_in(STATISTICS["key"], 6)
    orders = [jax.random.permutation(jax.random.fold_in(key, j), N) for j in range(5)]
    noise = np.stack([gradients[np.asarray(o)[:4]].mean(0) - mean for o in orders])
    scale = np.abs(gradients).max()
    np.testing.assert_allclose(result.noise, noise, atol=1e-5 * scale)
    norms = np.linalg.norm(noise, axis=1)
    np.testing.assert_allclose(result.noise_norms, norms, rtol=1e-4)
    np.testing.assert_allclose(result.gradient_norm, np.linalg.norm(mean), rtol=1e-4)
    squares = norms**2 * 4 / (1 - 4 / N)
    trace, ratio = result.covariance_trace, result.noise_scale
    np.testing.assert_allclose(trace.value, squares.mean(), rtol=1e-4)
    error = squares.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(trace.standard_error, error, rtol=1e-4)
    np.testing.assert_allclose(ratio.value, squares.mean() / (mean @ mean), rtol=1e-4)
    np.testing.assert_allclose(ratio.standard_error, error / (mean @ mean), rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 11])
def test_the_trace_is_unbiased_whatever_the_batch_size(batch_size):
    """Without replacement: with 11 of 12 examples little noise is left."""
    measure = statistics(batch_size=batch_size, num_batches=600, chunk_size=5)
    result = jax.jit(measure)(STATE)
    gradients = per_example_gradients(STATE.params)
    exact = np.trace(np.cov(gradients.T))
    trace = result.covariance_trace
    assert abs(float(trace.value) - exact) < 4 * float(trace.standard_error)
    assert float(trace.standard_error) < 0.1 * exact
    exact_scale = dynamics.noise.noise_scale(model, squared_error, STATE.params, X, Y)
    found = result.noise_scale
    difference = abs(float(found.value) - float(exact_scale.noise_scale))
    assert difference < 4 * float(found.standard_error)


def test_other_steps_draw_other_minibatches():
    measure = jax.jit(statistics())
    first, again, later = (measure(state_at(STATE.params, s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.noise_norms, again.noise_norms)
    assert not np.array_equal(first.noise_norms, later.noise_norms)


def test_tiny_gradients_do_not_vanish_in_their_squares():
    x = jnp.array([1.0, 3.0]) * 1e-25
    measure = dynamics.gradient_statistics(
        lambda w, x: w * x,
        lambda outputs, y: outputs - y,
        x,
        x,
        batch_size=1,
        num_batches=2,
        key=jax.random.key(0),
    )
    result = measure(dynamics.init(OPTIMIZER, jnp.array(0.0)))
    np.testing.assert_allclose(result.gradient_norm, 2e-25, rtol=1e-6)
    np.testing.assert_allclose(result.noise_norms, 1e-25, rtol=1e-6)
    np.testing.assert_allclose(result.noise_scale.value, 0.5, rtol=1e-6)


def test_equal_statistics_are_equal():
    assert statistics() == statistics()
    assert hash(statistics()) == hash(statistics())
    assert statistics() != statistics(key=jax.random.key(4))
    assert statistics() != statistics(batch_size=3)


def test_measurements_built_inside_jit_of_known_arrays():
    key, directions = jax.random.key(0), np.eye(3, dtype=np.float32)

    @jax.jit
    def inside(state):
        losses = dynamics.example_losses(model, squared_error, X, Y, num=2, key=key)
        along = dynamics.projections(directions).project(jnp.arange(3.0))
        return losses(state), along, statistics(key=key)(state).gradient_norm

    losses, along, norm = inside(STATE)
    assert losses.shape == (2,)
    assert along.tolist() == [0, 1, 2]
    assert norm > 0


def test_bad_statistics(user_land):
    with pytest.raises(
        ValueError, match="below the number of examples, 12, but was 12"
    ):
        statistics(batch_size=12)
    with pytest.raises(
        ValueError, match="`num_batches` must be an integer of at least 2"
    ):
        statistics(num_batches=1)
    with pytest.raises(ValueError, match="`key` must be one typed random key"):
        statistics(key=0)
    with pytest.raises(ValueError, match="`key` must have values, but is traced"):
        jax.jit(lambda key: statistics(key=key)(STATE))(jax.random.key(0))
    with pytest.raises(ValueError, match=r"`onto` must be `sketch\(...\)`"):
        statistics(onto=jnp.eye(16))
    with pytest.raises(ValueError, match="`batch_size` must be None"):
        statistics(chunk_size=0)
    wrong = dynamics.gradient_statistics(
        model, lambda o, y: o.sum(), X, Y, **STATISTICS
    )
    with pytest.raises(ValueError, match="one loss per example"):
        wrong(STATE)


def test_arrays_that_are_held():
    """JAX arrays by identity; NumPy arrays, which may change, by contents."""
    array = np.arange(3.0)
    held = Held((array, X))
    assert Held((array, X)) == held
    assert hash(Held((array.copy(), X))) == hash(held)
    assert Held((array.copy(), X)) == held
    assert Held((array, X + 0)) != held
    assert Held([array, X]) != held
    assert Held((array.astype(np.float32), X)) != held
    array[0] = 7
    assert Held((array, X)) != held
    np.testing.assert_array_equal(held.tree[0], [0, 1, 2])
    assert held.tree[1] is X
