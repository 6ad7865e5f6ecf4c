"""Heavy-tailed noise against characteristic functions, and inside of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics, optimizers

NUM_UNITS = 20_000
SCALE = 0.3
# How far from zero a projection <t, X> of scale 1 is spread, in each form.
SPREADS = {
    "entry": lambda t, alpha: np.sum(abs(t) ** alpha) ** (1 / alpha),
    "row": lambda t, alpha: abs(np.sum(t)),
    "isotropic": lambda t, alpha: np.linalg.norm(t),
}
DIRECTIONS = np.array([[1.0, 0, 0], [0, 2.0, 0], [3.0, -4.0, 2.0], [1.0, 1.0, 1.0]])


def noise_of(shape, alpha, scale=1.0, seed=0, dtype=jnp.float32, **options):
    key = jax.random.key(seed)
    optimizer = optimizers.heavy_tailed_noise(scale, alpha, key=key, **options)
    zeros = jnp.zeros(shape, dtype)
    return optimizer.update(zeros, optimizer.init(zeros))[0]


def characteristic(x):
    """How far the mean of cos(x) is from that of a law of scale ``s``, in errors."""
    found = np.mean(np.cos(np.asarray(x, np.float64)))

    def errors(scale, alpha):
        want, twice = (np.exp(-((c * scale) ** alpha)) for c in (1, 2))
        return abs(found - want) / np.sqrt(((1 + twice) / 2 - want**2) / len(x))

    return errors


@pytest.mark.parametrize("form", SPREADS)
def test_units_have_the_law_of_the_form(form):
    for alpha in (1.2, 1.75):
        x = np.asarray(noise_of((3, NUM_UNITS), alpha, SCALE, form=form), np.float64)
        for t in DIRECTIONS:
            spread = SCALE * SPREADS[form](t, alpha)
            assert characteristic(t @ x)(spread, alpha) < 4
        # Two units, one inside of an array and one a half of them away.
        pair = x[0, : NUM_UNITS // 2] + 2 * x[1, NUM_UNITS // 2 :]
        spread = SCALE * (1 + 2**alpha) ** (1 / alpha)
        assert characteristic(pair)(spread, alpha) < 4


def test_another_form_is_seen():
    # The three laws differ in the same direction, so that the test above can fail.
    x = np.asarray(noise_of((3, NUM_UNITS), 1.2, SCALE, form="row"), np.float64)
    for t, form in ((DIRECTIONS[2], "entry"), (DIRECTIONS[3], "isotropic")):
        wrong = SCALE * SPREADS[form](t, 1.2)
        assert characteristic(t @ x)(wrong, 1.2) > 10


@pytest.mark.parametrize("form", SPREADS)
def test_scale_at_the_indices_that_have_a_name(form):
    x = np.asarray(noise_of((1, NUM_UNITS), 2.0, SCALE, form=form), np.float64)
    variance = 2 * SCALE**2
    assert abs(np.mean(x**2) - variance) < 4 * variance * (2 / NUM_UNITS) ** 0.5
    x = np.asarray(noise_of((1, NUM_UNITS), 1.0, SCALE, form=form), np.float64)
    error = np.pi * SCALE / 2 / NUM_UNITS**0.5
    assert abs(np.median(abs(x)) - SCALE) < 4 * error


def test_scale_multiplies_and_a_step_has_its_power():
    one = np.asarray(noise_of((5, 4), 1.6))
    np.testing.assert_array_equal(noise_of((5, 4), 1.6, 0.0), 0 * one)
    np.testing.assert_allclose(noise_of((5, 4), 1.6, 0.25), 0.25 * one, rtol=1e-6)
    euler = noise_of((5, 4), 1.6, 2.0, step_size=0.01)
    np.testing.assert_allclose(euler, 2 * 0.01 ** (1 / 1.6) * one, rtol=1e-6)


def test_units_are_where_the_kernel_has_them():
    last = np.asarray(noise_of((3, 3, 2, 4), 1.5, form="row"))
    np.testing.assert_array_equal(last, np.broadcast_to(last[0, 0, 0], last.shape))
    assert len(np.unique(last)) == 4
    first = np.asarray(noise_of((4, 3, 3, 2), 1.5, form="row", unit_axis="first"))
    np.testing.assert_array_equal(first[:, 0, 0, 0], last[0, 0, 0])
    assert len(np.unique(first)) == 4
    # Of one radius a unit: the entries of a unit are large together.
    last = np.asarray(noise_of((50, 40), 0.5, form="isotropic"), np.float64)
    first = noise_of((40, 50), 0.5, form="isotropic", unit_axis="first")
    np.testing.assert_array_equal(np.asarray(first).T, last)
    sizes = np.log(np.median(abs(last), axis=0))
    assert np.std(sizes) > 5 * np.std(np.log(np.median(abs(last), axis=1)))


@pytest.mark.parametrize("form", SPREADS)
def test_arrays_of_any_shape_and_precision(form):
    params = {"kernel": jnp.zeros((3, 4), jnp.bfloat16), "bias": jnp.zeros(4)}
    params |= {"gain": jnp.zeros(()), "empty": jnp.zeros((0, 3))}
    optimizer = optimizers.heavy_tailed_noise(
        0.1, 1.8, form=form, key=jax.random.key(0)
    )
    updates, _ = optimizer.update(params, optimizer.init(params))
    same = jax.tree.map(
        lambda a, b: a.shape == b.shape and a.dtype == b.dtype, *((updates, params))
    )
    assert jax.tree.all(same)
    assert len(np.unique(np.asarray(updates["bias"]))) == 4
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_double_precision(x64):
    assert noise_of((3, 4), 1.8, dtype=jnp.float64).dtype == jnp.float64


def test_each_update_and_each_array_has_its_own_noise():
    optimizer = optimizers.heavy_tailed_noise(1.0, 1.5, key=jax.random.key(0))
    zeros = {"a": jnp.zeros((5, 4)), "b": jnp.zeros((5, 4))}
    first, state = optimizer.update(zeros, optimizer.init(zeros))
    second, state = optimizer.update(zeros, state)
    assert int(state.count) == 2
    again, _ = optimizer.update(zeros, state._replace(count=jnp.int32(1)))
    other = noise_of((5, 4), 1.5, seed=1)
    draws = [first["a"], first["b"], second["a"], second["b"], other]
    assert len(np.unique(np.concatenate(draws))) == 5 * 20
    jax.tree.map(np.testing.assert_array_equal, second, again)


def test_new_numbers_are_no_new_program_and_masks_hold():
    traces = []
    inject = optax.inject_hyperparams(optimizers.heavy_tailed_noise)
    noise = inject(0.1, 1.9, form="row", key=jax.random.key(0))
    optimizer = optax.masked(noise, {"hidden": True, "output": False})

    @jax.jit
    def update(updates, state, params):
        traces.append(None)
        return optimizer.update(updates, state, params)

    zeros = {"hidden": jnp.zeros((2, 3)), "output": jnp.zeros((3, 1))}
    state = optimizer.init(zeros)
    draws = []
    for scale, alpha in ((0.1, 1.9), (0.2, 1.9), (0.2, 1.2)):
        inner = state.inner_state
        known = inner.hyperparams | {
            "scale": jnp.float32(scale),
            "alpha": jnp.float32(alpha),
        }
        changed = state._replace(inner_state=inner._replace(hyperparams=known))
        updates, _ = update(zeros, changed, zeros)
        np.testing.assert_array_equal(updates["output"], 0)
        draws.append(np.asarray(updates["hidden"]))
    assert len(traces) == 1
    np.testing.assert_allclose(draws[1], 2 * draws[0], rtol=1e-6)
    assert not np.any(draws[2] == draws[1])


# Inside of training


def quadratic(params, model_state, batch, key):
    return 0.5 * jnp.sum((params["w"] - jnp.mean(batch, axis=0)) ** 2), model_state


def setting(seed=0, alpha=1.8):
    noise = optimizers.heavy_tailed_noise(0.01, alpha, key=jax.random.key(seed))
    optimizer = optax.chain(optax.sgd(0.1), noise)
    return optimizer, {"w": jnp.ones((4,))}, jnp.arange(24.0).reshape(6, 4) / 24


def train(optimizer, state, data, num_steps, **options):
    return dynamics.train(
        quadratic,
        state,
        optimizer,
        data,
        num_steps=num_steps,
        key=jax.random.key(5),
        batch_size=2,
        record={"w": lambda s: s.params["w"]},
        record_every=2,
        progress=False,
        **options,
    )


def test_resumed_training_has_the_same_noise(tmp_path):
    optimizer, params, data = setting()
    whole = train(optimizer, dynamics.init(optimizer, params), data, 4)
    half = train(optimizer, dynamics.init(optimizer, params), data, 2)
    rest = train(optimizer, half.state, data, 2)
    np.testing.assert_array_equal(rest.records["w"], whole.records["w"][1:])
    folder = tmp_path / "run"
    train(optimizer, dynamics.init(optimizer, params), data, 2, store=folder)
    start = dynamics.init(optimizer, params)
    kept = train(optimizer, start, data, 4, store=folder, resume=True)
    np.testing.assert_array_equal(kept.records["w"], whole.records["w"])
    # What is added at the first step has shrunk by a tenth at the second.
    plain = train(optax.sgd(0.1), dynamics.init(optax.sgd(0.1), params), data, 2)
    gap = np.asarray(whole.records["w"][1] - plain.records["w"][1], np.float64)
    draws = []
    state = optimizer.init(params)
    for _ in range(2):
        update, state = optimizer.update({"w": jnp.zeros(4)}, state)
        draws.append(np.asarray(update["w"], np.float64))
    np.testing.assert_allclose(gap, 0.9 * draws[0] + draws[1], atol=1e-6)


@pytest.mark.parametrize("alpha", [1.4, 2.0])
def test_steps_of_a_levy_driven_process_have_its_stationary_scale(alpha):
    # w' = (1 - eta) w + eta^(1/alpha) sigma X: scales add up to the power alpha.
    eta, sigma, num_steps = 0.2, 0.7, 60
    noise = optimizers.heavy_tailed_noise(
        sigma, alpha, step_size=eta, key=jax.random.key(1)
    )
    optimizer = optax.chain(optax.sgd(eta), noise)
    history = dynamics.train(
        quadratic,
        dynamics.init(optimizer, {"w": jnp.zeros(NUM_UNITS)}),
        optimizer,
        jnp.zeros((1, NUM_UNITS)),
        num_steps=num_steps,
        key=jax.random.key(5),
        progress=False,
    )
    power = sum((1 - eta) ** (alpha * t) for t in range(num_steps))
    scale = (eta * power) ** (1 / alpha) * sigma
    w = np.asarray(history.state.params["w"], np.float64)
    for t in (0.3, 1.0, 2.0):
        assert characteristic(t * w)(t * scale, alpha) < 4


def test_runs_of_a_population_have_keys_and_numbers_of_their_own():
    _, params, data = setting()
    inject = optax.inject_hyperparams(optimizers.heavy_tailed_noise)
    noise = inject(0.01, 1.5, key=jax.random.key(0))
    optimizer = optax.chain(optax.sgd(0.1), noise)
    stacked = jax.tree.map(lambda a: jnp.stack([a] * 2), params)
    alphas = [1.8, 1.2]
    states = dynamics.init_population(
        optimizer, stacked, hyperparams={"alpha": np.array(alphas)}
    )
    noise_keys = jax.vmap(jax.random.key)(jnp.array([0, 7]))
    opt_state = optax.tree.set(states.opt_state, key=noise_keys)
    history = dynamics.train_population(
        quadratic,
        states._replace(opt_state=opt_state),
        optimizer,
        data,
        num_steps=4,
        keys=jax.vmap(jax.random.key)(jnp.array([5, 5])),
        batch_size=2,
        record={"w": lambda s: s.params["w"]},
        record_every=2,
        progress=False,
    )
    for run, seed in enumerate((0, 7)):
        optimizer, params, data = setting(seed, alphas[run])
        alone = train(optimizer, dynamics.init(optimizer, params), data, 4)
        np.testing.assert_allclose(
            history.records["w"][:, run], alone.records["w"], rtol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scale": -1.0}, "`scale` must be finite, at least 0, but was -1.0"),
        ({"scale": float("nan")}, "`scale` must be"),
        ({"alpha": 2.1}, r"`alpha` must be a number in \(0, 2\], but was 2.1"),
        ({"alpha": 0.0}, "`alpha` must be"),
        ({"form": "rows"}, "`form` must be one of 'entry', 'row', 'isotropic'"),
        ({"key": 0}, "`key` must be one typed random key"),
        ({"step_size": 0.0}, "`step_size` must be positive and finite, or None"),
        ({"unit_axis": -1}, "`unit_axis` must be one of 'last', 'first'"),
    ],
)
def test_bad_input(user_land, options, match):
    options = {"scale": 0.1, "alpha": 1.5, "key": jax.random.key(0)} | options
    with pytest.raises(ValueError, match=match):
        optimizers.heavy_tailed_noise(**options)


def test_integers_are_no_updates(user_land):
    optimizer = optimizers.heavy_tailed_noise(0.1, 1.5, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`updates` must be floating-point"):
        optimizer.update(jnp.ones(3, int), optimizer.init(jnp.ones(3)))
