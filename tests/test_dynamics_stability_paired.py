"""Stability from paired runs: against loops, and below a bound that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import stability

EPS32 = float(np.finfo(np.float32).eps)
DECAY, RADIUS = 0.5, 1.0


def new_key(seed=0):
    return jax.random.key(seed)


def oracle(losses, others, num_swapped):
    """Max over records of the best match, one pair of records after another."""
    losses, others = np.asarray(losses, np.float64), np.asarray(others, np.float64)
    distances = [[np.mean(np.abs(a - b)) for b in others] for a in losses]
    nearest = np.min(distances, axis=1)
    worst = int(np.argmax(nearest))
    return nearest[worst] / num_swapped, worst, int(np.argmin(distances[worst]))


def test_pairs_against_a_loop():
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(5, 7, 9)).astype(np.float32)
    others = rng.normal(size=(5, 4, 9)).astype(np.float32)
    got = stability.random_set_stability(
        jnp.asarray(losses), jnp.asarray(others), num_swapped=3
    )
    exact = [oracle(a, b, 3) for a, b in zip(losses, others, strict=True)]
    betas = np.array([beta for beta, _, _ in exact])
    np.testing.assert_allclose(got.beta.value, betas.mean(), rtol=20 * EPS32)
    error = betas.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(got.beta.standard_error, error, rtol=100 * EPS32)
    assert got.beta.num_samples == 5
    assert got.worst_record.tolist() == [worst for _, worst, _ in exact]
    assert got.best_match.tolist() == [match for _, _, match in exact]

    last = stability.on_average_stability(
        jnp.asarray(losses[:, :4]), jnp.asarray(others), num_swapped=3
    )
    means = np.abs(np.mean(losses[:, 3] - others[:, 3], axis=1)) / 3
    np.testing.assert_allclose(last.value, means.mean(), rtol=100 * EPS32)
    error = means.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(last.standard_error, error, rtol=100 * EPS32)


def test_one_pair_has_no_spread_and_bad_losses_show():
    losses = jnp.asarray(np.random.default_rng(0).normal(size=(7, 9)), jnp.float32)
    got = stability.random_set_stability(losses, losses[::-1], num_swapped=1)
    assert float(got.beta.value) == 0
    assert np.isposinf(got.beta.standard_error)
    assert int(got.best_match) == 6 - int(got.worst_record)
    broken = stability.random_set_stability(
        losses.at[3, 2].set(jnp.nan), losses, num_swapped=1
    )
    assert np.isnan(broken.beta.value)
    assert int(broken.worst_record) == 3


def test_swapping():
    x = jnp.arange(20.0).reshape(10, 2)
    y = jnp.arange(10)
    fresh = -1 - jnp.arange(12.0).reshape(6, 2), 100 + jnp.arange(6)
    got = stability.swap_examples(x, y, fresh, num=4, key=new_key())
    indices = got.indices.tolist()
    assert len(set(indices)) == 4
    for row, index in enumerate(indices):
        assert got.x[index].tolist() == fresh[0][row].tolist()
        assert int(got.y[index]) == 100 + row
    others = np.setdiff1d(np.arange(10), indices)
    assert (got.x[others] == x[others]).all()
    assert (got.y[others] == others).all()
    assert got.y.dtype == y.dtype


def squared_error(w, x, y):
    return (x @ w - y) ** 2 / 2


def ridge(w, model_state, batch, key):
    x, y = batch
    return jnp.mean(squared_error(w, x, y)) + DECAY / 2 * jnp.sum(w**2), model_state


def draw(rng, num):
    """Inputs on a sphere, so that constants are known; bounded noise."""
    x = rng.normal(size=(num, 4))
    x *= RADIUS / np.linalg.norm(x, axis=1, keepdims=True)
    y = x @ np.array([1.0, -1.0, 0.5, 0.0]) + rng.uniform(-0.5, 0.5, size=num)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def losses_along(x, y, test):
    # One over the smoothness |x|^2 + decay, the largest that the bound allows.
    optimizer = optax.sgd(1 / (RADIUS**2 + DECAY))
    history = dynamics.train(
        ridge,
        dynamics.init(optimizer, jnp.zeros(4)),
        optimizer,
        (x, y),
        num_steps=60,
        batch_size=1,
        key=new_key(3),
        record={
            "losses": Losses(test),
            "norm": lambda state: jnp.linalg.norm(state.params),
        },
        record_every=1,
        progress=False,
    )
    return history.records["losses"], history.records["norm"].max()


class Losses:
    """Test losses; one object for all runs, so that training is compiled once."""

    def __init__(self, test):
        self.test = test

    def __call__(self, state):
        return squared_error(state.params, *self.test)

    def __eq__(self, other):
        return isinstance(other, Losses) and self.test is other.test

    def __hash__(self):
        return id(self.test)


def test_ridge_regression_is_as_stable_as_strong_convexity_promises():
    rng = np.random.default_rng(1)
    n, (x, y), fresh, test = 40, draw(rng, 40), draw(rng, 6), draw(rng, 100)
    losses, largest = losses_along(x, y, test)
    swapped_losses, num_pairs = [], 6
    for pair in range(num_pairs):
        one = jax.tree.map(lambda a, pair=pair: a[pair : pair + 1], fresh)
        swapped = stability.swap_examples(x, y, one, num=1, key=new_key(pair))
        some, norm = losses_along(swapped.x, swapped.y, test)
        swapped_losses.append(some)
        largest = max(largest, norm)
    losses = jnp.asarray(np.stack([losses] * num_pairs))
    others = jnp.asarray(np.stack(swapped_losses))
    got = stability.random_set_stability(losses, others, num_swapped=1)
    last = stability.on_average_stability(losses, others, num_swapped=1)

    # |gradient| <= |x| (|x| |w| + |y|) + decay |w|, and 2 L^2 / (decay n).
    most = float(np.abs(np.concatenate([y, fresh[1], test[1]])).max())
    lipschitz = RADIUS * (RADIUS * largest + most) + DECAY * largest
    bound = 2 * lipschitz**2 / (DECAY * n)
    assert 0 < float(got.beta.value) < bound
    assert 0 < float(got.beta.standard_error) < float(got.beta.value)
    assert float(last.value) <= float(jnp.abs(losses - others)[:, -1].mean())
    assert 0 < float(last.value) < bound

    same = stability.random_set_stability(losses, losses, num_swapped=1)
    assert float(same.beta.value) == float(same.beta.standard_error) == 0
    none = stability.on_average_stability(losses, losses, num_swapped=1)
    assert float(none.value) == 0


def test_refusals(user_land):
    x, y = jnp.zeros((5, 2)), jnp.zeros(5)
    good = {"num": 2, "key": new_key()}
    with pytest.raises(ValueError, match="`replacements` must be a pair"):
        stability.swap_examples(x, y, x, **good)
    with pytest.raises(ValueError, match="`num` must be at most 1"):
        stability.swap_examples(x, y, (x[:1], y[:1]), **good)
    with pytest.raises(ValueError, match=r"`replacements\[0\]` must have shape"):
        stability.swap_examples(x, y, (x[:, :1], y), **good)
    with pytest.raises(ValueError, match="`key` must be"):
        stability.swap_examples(x, y, (x, y), num=2, key=0)
    whole = jnp.zeros((5, 2), jnp.int32)
    with pytest.raises(ValueError, match="fit into the dtype of the examples, int32"):
        stability.swap_examples(whole, y, (x, y), **good)
    losses = jnp.zeros((3, 4))
    for function in (stability.random_set_stability, stability.on_average_stability):
        with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
            function(losses, jnp.zeros((3, 5)), num_swapped=1)
        with pytest.raises(ValueError, match="must be real, but have dtypes"):
            function(losses, 1j * losses, num_swapped=1)
        with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 3, 4\)"):
            function(losses, jnp.zeros((2, 3, 4)), num_swapped=1)
        with pytest.raises(ValueError, match="`num_swapped` must be"):
            function(losses, losses, num_swapped=0)
