"""Simulated equations against stationary laws, and SGD's noise against Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.dynamics import noise

NUM = 20_000


def decay(x):
    """The drift of an Ornstein-Uhlenbeck process of rate 2."""
    return -2.0 * x


def gaussian(x, key):
    return 0.5 * jax.random.normal(key, x.shape)


def cauchy(x, key):
    """Symmetric and stable with index 1: characteristic function exp(-|t|)."""
    return jax.random.cauchy(key, x.shape)


def test_gaussian_noise_has_the_exact_stationary_variance():
    path = noise.simulate(
        decay,
        gaussian,
        jnp.zeros(NUM),
        step_size=0.25,
        num_steps=40,
        key=jax.random.key(0),
        record_every=20,
    )
    assert path.shape == (3, NUM)
    # x' = x / 2 + N(0, .25 * .25): variance .0625 / (1 - .25), where the process in
    # continuous time has .25 / 4.
    variance = float(np.var(path[-1]))
    assert abs(variance / (0.0625 / 0.75) - 1) < 4 * (2 / NUM) ** 0.5


def test_stable_noise_has_the_exact_stationary_scale():
    path = noise.simulate(
        decay,
        cauchy,
        jnp.zeros(NUM),
        step_size=0.25,
        num_steps=40,
        key=jax.random.key(1),
        alpha=1.0,
        record_every=40,
    )
    # x' = x / 2 + .25 C: the scale s of the law solves s = s / 2 + .25.
    found = float(np.mean(np.cos(path[-1])))
    assert abs(found - np.exp(-0.5)) < 4 / NUM**0.5


def test_a_path_does_not_depend_on_what_is_recorded():
    run = lambda every: noise.simulate(
        lambda x: {"a": decay(x["a"])},
        lambda x, key: {"a": gaussian(x["a"], key)},
        {"a": jnp.ones(3)},
        step_size=0.1,
        num_steps=6,
        key=jax.random.key(2),
        record_every=every,
    )["a"]
    np.testing.assert_allclose(run(1)[::3], run(3), rtol=1e-6)
    x = jnp.ones(3)
    for k in range(6):
        draw = gaussian(x, jax.random.fold_in(jax.random.key(2), k))
        x = x + 0.1 * decay(x) + 0.1**0.5 * draw
    np.testing.assert_allclose(run(3)[-1], x, rtol=1e-5)


def model(w, x):
    return jnp.tanh(x @ w)


def squared(outputs, y):
    return (outputs - y) ** 2


def problem():
    rng = np.random.default_rng(3)
    x, y, w = rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=3)
    return [a.astype(np.float32) for a in (x, y, w)]


def test_noise_of_batches_has_their_covariance():
    x, y, w = problem()
    sde = noise.sgd_sde(model, squared, x, y, learning_rate=0.2, batch_size=4)
    one = lambda w, x, y: squared(model(w, x[None]), y[None])[0]
    gradients = jax.vmap(jax.grad(one), (None, 0, 0))(w, x, y)
    np.testing.assert_allclose(sde.drift(w), -np.mean(gradients, 0), rtol=1e-5)
    keys = jax.random.split(jax.random.key(4), NUM)
    draws = np.asarray(jax.jit(jax.vmap(sde.kick, (None, 0)))(w, keys))
    exact = 0.2 / 4 * np.cov(np.asarray(gradients).T, bias=True)
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.max(np.abs(np.cov(draws.T) - exact) / scale) < 4 * (2 / NUM) ** 0.5
    spread = np.sqrt(np.diag(exact) / NUM)
    assert np.all(np.abs(np.mean(draws, 0)) < 4 * spread)


def test_other_data_do_not_compile_again():
    traces = []

    def counted(w, x):
        traces.append(1)
        return model(w, x)

    x, y, w = problem()
    for scale in (1.0, 2.0):
        sde = noise.sgd_sde(
            counted, squared, scale * x, y, learning_rate=0.1, batch_size=1
        )
        noise.simulate(*sde, w, step_size=0.1, num_steps=2, key=jax.random.key(5))
        if scale == 1.0:
            first = len(traces)
    # Shapes are checked by tracing; the program is not.
    again = len(traces) - first
    assert again < first


def test_the_learning_rate_may_be_traced(user_land):
    x = jnp.array([1.0, 3.0])

    def draw(rate):
        sde = noise.sgd_sde(
            lambda w, x: w * x,
            lambda outputs, y: outputs,
            x,
            x,
            learning_rate=rate,
            batch_size=2,
        )
        return sde.kick(jnp.array(0.0), jax.random.key(0))

    np.testing.assert_allclose(jax.jit(draw)(0.1), draw(0.1), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"step_size": 0.0}, "`step_size` must be positive"),
        ({"num_steps": 0}, "`num_steps` must be"),
        ({"record_every": 2}, "`record_every` must divide"),
        ({"alpha": 2.5}, "`alpha` must be in"),
        ({"key": 0}, "`key` must be"),
        ({"start": jnp.arange(3)}, "`start` must be floating"),
        ({"drift": None}, "`drift` must be a function"),
        ({"kick": lambda x, key: 1j * x}, "`kick` must return real numbers"),
        ({"drift": lambda x: x[:2]}, "`drift` must return a tangent"),
        ({"kick": lambda x, key: {"a": x}}, "`kick` must return a tangent"),
    ],
)
@pytest.mark.usefixtures("user_land")
def test_bad_input(options, match):
    given = {
        "drift": decay,
        "kick": gaussian,
        "start": jnp.ones(3),
        "step_size": 0.1,
        "num_steps": 3,
        "key": jax.random.key(0),
    } | options
    with pytest.raises(ValueError, match=match):
        noise.simulate(
            given.pop("drift"), given.pop("kick"), given.pop("start"), **given
        )
