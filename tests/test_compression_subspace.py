"""Training in a random subspace: its map against columns, and through `train`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import compression, dynamics

DIM = 7


def init_fn(key):
    """Arrays smaller and larger than the subspace, of two dtypes."""
    keys = jax.random.split(key, 2)
    return {
        "a": jax.random.normal(keys[0], (5, 9)),
        "b": jax.random.normal(keys[1], (3,)),
        "c": jnp.ones((), jnp.bfloat16),
    }


def columns(subspace, dtype=np.float64):
    """The map as a matrix ``[p, dim]``, a unit vector at a time."""
    zeros = jax.tree.map(jnp.zeros_like, subspace.start())
    moved = jax.vmap(lambda u: subspace.params(u, zeros))(jnp.eye(subspace.dim))
    flat = [
        np.asarray(a, dtype).reshape(subspace.dim, -1) for a in jax.tree.leaves(moved)
    ]
    return np.concatenate(flat, axis=1).T


def test_every_parameter_moves_with_one_coordinate():
    subspace = compression.random_subspace(init_fn, dim=DIM, seed=3)
    matrix = columns(subspace)
    num_params = 5 * 9 + 3 + 1
    assert matrix.shape == (num_params, DIM)
    assert np.all(np.sum(matrix != 0, axis=1) == 1)
    # bfloat16 has 8 bits.
    np.testing.assert_allclose(
        np.abs(matrix).sum(axis=1), np.sqrt(DIM / num_params), rtol=2**-8
    )
    gram = matrix.T @ matrix
    np.testing.assert_array_equal(gram, np.diag(np.diag(gram)))
    # Whole blocks of one array hold every coordinate once.
    assert np.all(np.sum(matrix[:42] != 0, axis=0) == 6)
    other = columns(compression.random_subspace(init_fn, dim=DIM, seed=4))
    assert np.mean(matrix != other) > 0.1


def test_the_adjoint_is_that_of_the_columns():
    subspace = compression.random_subspace(init_fn, dim=DIM, seed=3)
    start = subspace.start()
    tree = jax.tree.map(lambda a: jnp.cos(3 * a), start)
    flat = np.concatenate([np.asarray(a, float).ravel() for a in jax.tree.leaves(tree)])
    np.testing.assert_allclose(
        subspace.project(tree), columns(subspace).T @ flat, rtol=0, atol=2e-2
    )
    # But for the number of half precision, to single precision.
    exact = columns(subspace)[:-1].T @ flat[:-1]
    tree["c"] = jnp.zeros((), jnp.bfloat16)
    np.testing.assert_allclose(subspace.project(tree), exact, atol=1e-5)


def test_double_precision(x64):
    subspace = compression.random_subspace(
        lambda key: jax.random.normal(key, (50,), jnp.float64), dim=DIM, seed=3
    )
    u = np.linspace(-1, 1, DIM)
    matrix = columns(subspace)
    moved = np.asarray(subspace.params(u)) - np.asarray(subspace.start())
    np.testing.assert_allclose(moved, matrix @ u, atol=1e-15)
    projected = subspace.project(jnp.cos(jnp.arange(50.0)))
    assert projected.dtype == jnp.float64
    np.testing.assert_allclose(projected, matrix.T @ np.cos(np.arange(50)), atol=1e-14)


def test_lengths_are_kept_in_the_mean_over_seeds():
    # All in one program: the seed is an argument of it.
    size, num_seeds = 23, 400
    u = jnp.array([3.0, 0.0, -1.0, 0.5, 0.0, 0.0, 2.0])
    squares = []
    for seed in range(num_seeds):
        subspace = compression.random_subspace(zeros_of_23, dim=DIM, seed=seed)
        squares.append(float(jnp.sum(subspace.params(u) ** 2)))
    error = np.std(squares, ddof=1) / np.sqrt(num_seeds)
    # 23 numbers are three blocks and a part, so that single lengths differ.
    assert error > 0
    assert abs(np.mean(squares) - float(jnp.sum(u**2))) < 4 * error
    assert size == zeros_of_23(jax.random.key(0)).size


def zeros_of_23(key):
    del key
    return jnp.zeros(23)


def quadratic(params, model_state, batch, key):
    """A loss with a model state that counts its calls."""
    del key
    loss = sum(jnp.sum((a.astype(float) - 1) ** 2) for a in jax.tree.leaves(params))
    return jnp.mean(batch) * loss, model_state + 1


@pytest.mark.parametrize("start", ["seed", "model_state"])
def test_training_moves_along_the_projected_gradient(start):
    subspace = compression.random_subspace(init_fn, dim=DIM, seed=3)
    objective = subspace.objective(quadratic, start=start)
    count = jnp.zeros((), int)
    model_state = count
    if start == "model_state":
        model_state = compression.SubspaceState(subspace.start(), count)
    optimizer = optax.sgd(0.1)
    history = dynamics.train(
        objective,
        dynamics.init(optimizer, jnp.zeros(DIM), model_state=model_state),
        optimizer,
        jnp.ones((2, 1)),
        num_steps=2,
        key=jax.random.key(0),
        progress=False,
    )
    u = jnp.zeros(DIM)
    for _ in range(2):
        params = subspace.params(u)
        grads = jax.grad(lambda p: quadratic(p, 0, jnp.ones(1), None)[0])(params)
        u = u - 0.1 * subspace.project(grads)
    np.testing.assert_allclose(history.state.params, u, atol=2e-2)
    held = history.state.model_state
    assert int(held.model_state if start == "model_state" else held) == 2
    # What a run keeps has the length of the subspace.
    sizes = [a.size for a in jax.tree.leaves(history.state.params)]
    assert sizes == [DIM]


def test_a_population_trains_in_one_subspace():
    subspace = compression.random_subspace(init_fn, dim=DIM, seed=3)
    optimizer = optax.sgd(0.1)
    objective = subspace.objective(lambda p, s, b, k: (quadratic(p, 0, b, k)[0], s))
    states = dynamics.init_population(optimizer, jnp.zeros((2, DIM)))
    history = dynamics.train_population(
        objective,
        states,
        optimizer,
        jnp.ones((2, 1)),
        num_steps=2,
        keys=jax.random.split(jax.random.key(0), 2),
        progress=False,
    )
    losses = history.trace["loss"]
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-5)
    assert losses[1, 0] < losses[0, 0]


def test_new_seeds_and_coordinates_trace_nothing_anew():
    traces = []

    def counted(key):
        traces.append(1)
        return jax.random.normal(key, (11,))

    for seed in range(3):
        subspace = compression.random_subspace(counted, dim=DIM, seed=seed)
        subspace.params(jnp.full(DIM, float(seed)))
    assert len(traces) == 1
    assert subspace == compression.random_subspace(counted, dim=DIM, seed=2)


def test_bad_input(user_land):
    make = compression.random_subspace
    with pytest.raises(ValueError, match="`init_fn` must be a function"):
        make(3, dim=2, seed=0)
    with pytest.raises(ValueError, match="`dim` must be an integer of at least 1"):
        make(init_fn, dim=0, seed=0)
    with pytest.raises(ValueError, match=r"`seed` must be below 2\*\*32"):
        make(init_fn, dim=2, seed=2**32)
    subspace = make(init_fn, dim=DIM, seed=0)
    with pytest.raises(ValueError, match=r"`u` must be 7 floating.* shape \(3,\)"):
        subspace.params(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"`u` must be 7 floating.* dtype int32"):
        subspace.params(jnp.zeros(DIM, int))
    with pytest.raises(ValueError, match="`start` must be one of"):
        subspace.objective(quadratic, start="zero")
    objective = subspace.objective(quadratic, start="model_state")
    with pytest.raises(ValueError, match="`model_state` must be a `SubspaceState`"):
        objective(jnp.zeros(DIM), (), jnp.ones(1), jax.random.key(0))
    integers = make(lambda key: jnp.arange(3), dim=2, seed=0)
    with pytest.raises(ValueError, match=r"`init_fn\(key\)` must be floating-point"):
        integers.start()
