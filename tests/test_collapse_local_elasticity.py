"""Local elasticity against explicit training steps; the SDE against its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import (
    _local_elasticity as module,
)
from jaxtheory.collapse import (
    elasticity_of_changes,
    local_elasticity,
    locally_elastic_sde,
)

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
LABELS = jnp.array([0, 0, 0, 1, 1, 1, 2, 2])


def model(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


@pytest.fixture(scope="module")
def network():
    """Parameters, tangent-kernel Gram matrix and changes of one step an example."""
    rng = np.random.default_rng(1)
    params = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 5), (5,))]
    jacobian = jax.jacobian(model)(params, X)
    flat = np.concatenate([np.reshape(j, (8, -1)) for j in jacobian], axis=1)
    targets = jnp.arange(8.0) - 4

    def change(i):
        loss = lambda p: (model(p, X)[i] - targets[i]) ** 2 / 2
        moved = jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))
        return model(moved, X) - model(params, X)

    changes = np.asarray(jax.jit(jax.vmap(change))(jnp.arange(8)))
    return flat @ flat.T, changes


def loops(similarity):
    """Means over ordered pairs within and between classes."""
    labels = np.asarray(LABELS)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    same = [similarity[i, j] for i, j in pairs if labels[i] == labels[j]]
    different = [similarity[i, j] for i, j in pairs if labels[i] != labels[j]]
    return np.mean(same), np.mean(different)


def test_gram_forms_match_loops(network):
    gram, _ = network
    norms = np.sqrt(np.diag(gram))
    expected = {
        "relative": np.abs(gram) / np.diag(gram)[:, None],
        "kernel": gram / np.outer(norms, norms),
    }
    for form, similarity in expected.items():
        found = local_elasticity(jnp.asarray(gram), LABELS, form=form)
        np.testing.assert_allclose(found.similarity, similarity, rtol=1e-5)
        same, different = loops(similarity)
        np.testing.assert_allclose(
            found[1:4], [same, different, same / different], rtol=2e-5
        )
        assert bool(jnp.all(found.defined))


def test_small_steps_change_what_the_kernel_says(network):
    gram, changes = network
    steps = elasticity_of_changes(jnp.asarray(changes), LABELS)
    kernel = local_elasticity(jnp.asarray(gram), LABELS)
    np.testing.assert_allclose(steps.similarity, kernel.similarity, atol=0.05)
    np.testing.assert_allclose(steps.elasticity, kernel.elasticity, rtol=0.03)
    two_outputs = jnp.stack([3 * changes, 4 * changes], axis=2)
    both = elasticity_of_changes(two_outputs, LABELS)
    np.testing.assert_allclose(both.similarity, steps.similarity, rtol=1e-5)


def test_zero_over_zero_is_left_out(network):
    gram, changes = network
    # A residual of zero: the step at example 2 changes nothing anywhere.
    found = elasticity_of_changes(jnp.asarray(changes).at[2].set(0), LABELS)
    assert not bool(jnp.any(found.defined[2]))
    assert bool(jnp.all(jnp.isnan(found.similarity[2])))
    assert bool(jnp.isfinite(found.elasticity))
    # A dead example: its gradient, and so its row and column, are zero.
    dead = jnp.asarray(gram).at[2].set(0).at[:, 2].set(0)
    for form, undefined in [("relative", 8), ("kernel", 15)]:
        found = local_elasticity(dead, LABELS, form=form)
        assert int(jnp.sum(~found.defined)) == undefined
        assert bool(jnp.isfinite(found.elasticity))


def simulate(features, labels, alpha, beta, *, noise=0.3, seed=0):
    return locally_elastic_sde(
        features,
        labels,
        intra_class=alpha,
        inter_class=beta,
        noise=noise,
        duration=4.0,
        num_steps=400,
        record_every=100,
        key=jax.random.key(seed),
    )


Y = jnp.arange(600) % 3
START = jnp.eye(3, 4)[Y]


def test_without_noise_the_rates_are_exact():
    path = simulate(START, Y, 1.5, 0.6, noise=0.0)
    means = np.eye(3, 4)
    common = means.mean(0, keepdims=True)
    np.testing.assert_allclose(path.times, np.arange(5), rtol=1e-6)
    for t, found in zip(range(5), path.means, strict=True):
        # Euler's steps, of 0.01.
        expected = common * (1 + 0.01 * (1.5 + 2 * 0.6) / 3) ** (100 * t)
        apart = (means - common) * (1 + 0.01 * (1.5 - 0.6) / 3) ** (100 * t)
        np.testing.assert_allclose(found, expected + apart, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.final, np.asarray(path.means[-1])[Y], rtol=1e-4)


def test_classes_that_do_not_occur_have_no_part():
    features, labels = START[Y < 2] + 5, Y[Y < 2]
    run = lambda k: locally_elastic_sde(
        features,
        labels,
        intra_class=1.5,
        inter_class=0.5,
        noise=0.3,
        duration=1.0,
        num_steps=10,
        num_classes=k,
        key=jax.random.key(2),
    )
    two, three = run(2), run(3)
    assert np.all(np.isnan(three.means[:, 2]))
    np.testing.assert_allclose(three.means[:, :2], two.means, rtol=1e-5)
    np.testing.assert_allclose(three.separation, two.separation, rtol=1e-4)
    predicted = three.predicted_separation
    np.testing.assert_allclose(predicted, two.predicted_separation, rtol=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.0), (0.9, 0.9), (0.0, 1.5)])
def test_separable_if_and_only_if_locally_elastic(alpha, beta):
    path = simulate(START, Y, alpha, beta)
    assert bool(path.separable) == (alpha > beta)
    # Four coordinates of Brownian motion: means wander by sigma sqrt(t / 200).
    np.testing.assert_allclose(
        path.separation[1:], path.predicted_separation[1:], rtol=0.15, atol=0.1
    )
    grows = bool(path.separation[4] > path.separation[1])
    assert grows == (alpha > beta)
    np.testing.assert_array_equal(path.class_counts, [200] * 3)


def test_a_common_mean_that_outgrows_float32_hides_nothing():
    # Differences of features follow the same equation, whatever the common mean does.
    near, fast = simulate(START, Y, 1.0, 1.0), simulate(START, Y, 10.0, 10.0)
    np.testing.assert_allclose(fast.separation[1:], near.separation[1:], rtol=1e-4)
    assert np.abs(fast.means[-1]).max() > 1e15


def test_the_same_shapes_are_traced_once_and_keys_matter():
    first = simulate(START, Y, 1.0, 0.0)
    before = module._simulate._cache_size()
    again = simulate(START, Y, 1.0, 0.0)
    other = simulate(2 * START, Y, 1.1, 0.2, seed=1)
    assert module._simulate._cache_size() == before
    np.testing.assert_array_equal(first.final, again.final)
    assert not np.array_equal(first.final, other.final)


GRAM = jnp.eye(8)


def sde(**changed):
    arguments = {
        "intra_class": 1.0,
        "inter_class": 0.0,
        "noise": 0.1,
        "duration": 1.0,
        "num_steps": 10,
        "key": jax.random.key(0),
    }
    return locally_elastic_sde(START, Y, **{**arguments, **changed})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: local_elasticity(GRAM[:, :4], LABELS), r"`gram` must have a row and"),
        (lambda: local_elasticity(GRAM[:, :, None], LABELS), r"`gram` must have a row"),
        (lambda: local_elasticity(GRAM, LABELS[:4]), r"`labels` must have as many"),
        (lambda: local_elasticity(GRAM, 0 * LABELS), r"`labels` must hold at least"),
        (
            lambda: local_elasticity(GRAM, LABELS, form="ntk"),
            r"`form` must be one of \('relative', 'kernel'\), but was 'ntk'",
        ),
        (
            lambda: elasticity_of_changes(GRAM[:4], LABELS[:4]),
            r"`changes` must have a row and a column",
        ),
        (lambda: sde(noise=-1.0), r"`noise` must be a number >= 0"),
        (lambda: sde(duration=0.0), r"`duration` must be a positive, finite number"),
        (lambda: sde(record_every=3), r"`record_every` must divide `num_steps` = 10"),
        (lambda: sde(key=0), r"`key` must be one typed random key"),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
