"""Flatness measures of small networks, against dense matrices and known symmetries."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.flatten_util import ravel_pytree

from jaxtheory.curvature import flatness

CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def new_key():
    """The same fresh key each time: one that was used may not be used again."""
    return jax.random.key(0)


def network(params, x):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def problem(n=12, biases=True):
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    params = {
        "w1": normal(4, 5) / 2,
        "b1": normal(5) / 2 * biases,
        "w2": normal(5, 3) / 2,
        "b2": normal(3) / 2 * biases,
    }
    return network, CROSS_ENTROPY, params, normal(n, 4), jnp.arange(n) % 3


def rescaled(params, a):
    """The same function: one ReLU layer times ``a``, the next one over ``a``."""
    w1, b1, w2 = a * params["w1"], a * params["b1"], params["w2"] / a
    return {**params, "w1": w1, "b1": b1, "w2": w2}


def check(estimate, expected, width=4):
    assert estimate.standard_error > 0
    assert abs(estimate.value - expected) < width * estimate.standard_error


@pytest.mark.parametrize("num_steps", [1, 5])
def test_asam_sharpness_under_relu_rescaling(num_steps):
    """Invariant with eta=0 and scaled or fixed biases; as published it is not."""
    apply_fn, loss_fn, params, *data = problem()

    def change(**options):
        measure = lambda params: flatness.asam_sharpness(
            apply_fn, loss_fn, params, *data, rho=0.2, num_steps=num_steps, **options
        )
        return abs(measure(rescaled(params, 3.0)) / measure(params) - 1)

    assert change(eta=0.0, biases="scaled") < 1e-4
    assert change(eta=0.0, biases="fixed") < 1e-4
    assert change(eta=0.01, biases="unscaled") > 0.02
    assert change(eta=0.0, biases="unscaled") > 0.02


def dense_relative_flatness(w, H):
    """``sum_ss' <w_s, w_s'> Tr(H_ss')`` by loops; ``w`` has inputs on axis 0."""
    d, k = w.shape
    H = H.reshape(d, k, d, k)
    return sum(
        w[:, s] @ w[:, r] * np.trace(H[:, s, :, r]) for s in range(k) for r in range(k)
    )


def test_relative_flatness_has_neurons_for_rows():
    apply_fn, loss_fn, params, x, y = problem()

    def dense(name, function):
        """`function` of a kernel and its own block of the Hessian."""
        alone = lambda w, x: apply_fn({**params, name: w}, x)
        H = oracles.dense_hessian(alone, loss_fn, params[name], x, y)
        return function(np.asarray(params[name], np.float64), np.asarray(H, np.float64))

    expected = {name: dense(name, dense_relative_flatness) for name in ("w1", "w2")}
    args = (apply_fn, loss_fn, params, x, y)
    found = flatness.relative_flatness(*args, key=new_key(), num_samples=2000)
    check(found, sum(expected.values()))
    one = flatness.relative_flatness(
        *args, key=new_key(), num_samples=2000, select=lambda path: "w2" in path
    )
    check(one, expected["w2"])
    # With rows and columns exchanged it is another number.
    d, k = params["w2"].shape
    turned = lambda w, H: dense_relative_flatness(
        w.T, H.reshape(d, k, d, k).transpose(1, 0, 3, 2)
    )
    assert abs(one.value - dense("w2", turned)) > 10 * one.standard_error
    scaled = (apply_fn, loss_fn, rescaled(params, 4.0), x, y)
    again = flatness.relative_flatness(*scaled, key=new_key(), num_samples=2000)
    np.testing.assert_allclose(again.value, found.value, rtol=1e-4)


def test_fisher_rao_norm_of_a_relu_network_without_biases():
    """Outputs are homogeneous of degree two: ``J t = 2 f``."""
    apply_fn, loss_fn, params, x, y = problem(biases=False)
    args = (apply_fn, loss_fn, params, x, y)
    f = np.asarray(apply_fn(params, x), np.float64)
    p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    slopes = p - np.eye(3)[np.asarray(y)]
    empirical = 2**2 * np.mean((slopes * f).sum(1) ** 2)
    exact = 2**2 * np.mean((p * f**2).sum(1) - (p * f).sum(1) ** 2)
    measure = lambda **options: flatness.fisher_rao(*args, **options)
    np.testing.assert_allclose(measure(), exact, rtol=1e-4)
    np.testing.assert_allclose(measure(matrix="empirical_fisher"), empirical, rtol=1e-4)
    t = np.asarray(ravel_pytree(params)[0])
    published = t @ oracles.dense_hessian(*args) @ t
    np.testing.assert_allclose(measure(matrix="hessian"), published, rtol=1e-3)


def test_shannon_entropy():
    """Also of outputs that rule out a class."""
    args = problem()
    f = np.asarray(network(args[2], args[3]), np.float64)
    p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    expected = -np.mean((p * np.log(p)).sum(1))
    for batch_size in (None, 5):
        found = flatness.shannon_entropy(*args, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    certain = lambda params, x: jnp.where(jnp.arange(3)[None] < 2, 0 * x, -jnp.inf)
    x = jnp.ones((2, 3))
    found = flatness.shannon_entropy(certain, CROSS_ENTROPY, x, x, jnp.zeros(2, int))
    np.testing.assert_allclose(found, np.log(2), rtol=1e-6)


def test_numbers_of_the_hessian_and_gauss_newton():
    args = problem()
    H, G = oracles.dense_hessian(*args), oracles.dense_ggn(*args)
    check(flatness.hessian_trace(*args, key=new_key()), np.trace(H))
    norm = flatness.hessian_frobenius_norm(*args, key=new_key(), num_samples=200)
    check(norm, np.linalg.norm(H))
    found = flatness.effective_dimension(*args, key=new_key(), regularization=0.1)
    values = np.linalg.eigvalsh(G)
    check(found, (values / (values + 0.1)).sum())


@pytest.mark.parametrize("scale", [1.0, 1e-14])
def test_noise_alignment(scale):
    """Against dense matrices, also where squared covariances leave single precision."""
    apply_fn, _, params, x, y = problem()
    # A factor on the loss keeps the residuals: float32 would round them away.
    targets = apply_fn(params, x) + jax.nn.one_hot(y, 3)
    loss = lambda f, y: scale * jnp.sum((f - y) ** 2, axis=-1) / 2
    args = (apply_fn, loss, params, x, targets)
    found = flatness.noise_alignment(*args, key=new_key(), num_samples=400)

    unit = lambda f, y: jnp.sum((f - y) ** 2, axis=-1) / 2
    G = np.asarray(oracles.dense_ggn(apply_fn, unit, params, x, targets), np.float64)
    flat, unravel = ravel_pytree(params)
    losses = lambda w: unit(apply_fn(unravel(w), x), targets)
    S = np.cov(np.asarray(jax.jacrev(losses)(flat), np.float64).T, ddof=0)
    aligned = np.trace(S @ G)
    cosine = aligned / np.linalg.norm(S) / np.linalg.norm(G)
    check(found.cosine, cosine)
    assert found.cosine.standard_error < 0.05
    # Gradients are in units of the scale, and so are curvature and loss.
    expected = aligned / (2 * 0.5 * np.linalg.norm(G) ** 2)
    check(found.loss_scaled, expected)
    assert found.loss_scaled.standard_error < 0.1 * expected


def test_noise_of_independent_residuals_is_aligned():
    """``S = 2 L G`` where residuals of size one have random signs: alignment 1."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(4000, 3)), jnp.float32)
    y = jnp.asarray(draw.choice([-1.0, 1.0], 4000), jnp.float32)
    half = lambda f, y: (f - y) ** 2 / 2
    args = (lambda w, x: x @ w, half, jnp.zeros(3), x, y)
    found = flatness.noise_alignment(*args, key=new_key())
    np.testing.assert_allclose(found.loss_scaled.value, 1, atol=0.02)
    np.testing.assert_allclose(found.cosine.value, 1, atol=0.001)


def test_equal_examples_have_no_noise_to_align():
    """What rounding leaves of their covariance is no direction."""
    model, loss_fn, params, x, y = problem()
    same = lambda a: jnp.broadcast_to(a[:1], a.shape)
    args = (model, loss_fn, params, same(x), same(y))
    found = flatness.noise_alignment(*args, key=new_key())
    assert np.isnan(found.cosine.value)
    assert np.isnan(found.loss_scaled.value)


def test_new_parameters_cost_no_new_trace():
    """Beyond checks and operators, which trace the shapes of the model."""
    count = 0

    def counted(params, x):
        nonlocal count
        count += 1
        return network(params, x)

    _, loss_fn, params, x, y = problem()
    first, second = {}, {}
    for traces in (first, second):
        for name in flatness.MEASURES:
            count = 0
            measure = lambda params: flatness.all_measures(
                counted,
                loss_fn,
                params,
                x,
                y,
                key=new_key(),
                initial_params=params,
                names=[name],  # noqa: B023
            )
            jax.eval_shape(measure, params)
            traces[name] = count
    # A problem is checked once, and for each operator that is built from it.
    checks = {"noise_alignment": 3, "shannon_entropy": 2}
    assert all(second[name] <= checks.get(name, 1) for name in first)
    assert sum(first.values()) > sum(second.values()) + 10


NAMES = [
    "lpf",
    "epsilon_sharpness",
    "pac_bayes",
    "sam_sharpness",
    "effective_dimension",
]


def test_all_measures_over_a_population():
    """Mapped over stacked parameters, the table holds what single calls return."""
    apply_fn, loss_fn, params, x, y = problem()
    population = jax.tree.map(lambda p: jnp.stack([p, 1.5 * p]), params)

    def measure(params):
        return flatness.all_measures(
            apply_fn,
            loss_fn,
            params,
            x,
            y,
            key=new_key(),
            initial_params=jax.tree.map(jnp.zeros_like, params),
            names=NAMES,
            options={"lpf": {"std": 0.1}},
        )

    found = jax.jit(jax.vmap(measure))(population)
    assert set(NAMES) < set(found)
    assert found["effective_dimension.num_negative"].shape == (2,)
    second = measure(jax.tree.map(lambda p: p[1], population))
    for name in ("lpf", "effective_dimension"):
        pairs = zip(found[name][:2], second[name][:2], strict=True)
        for many, one in pairs:
            np.testing.assert_allclose(many[1], one, rtol=1e-3)
    for name in ("epsilon_sharpness", "pac_bayes", "sam_sharpness"):
        np.testing.assert_allclose(found[name][1], second[name], rtol=1e-3)
    key = jax.random.fold_in(new_key(), 0)  # the first row
    alone = flatness.lpf(apply_fn, loss_fn, params, x, y, key=key, std=0.1)
    np.testing.assert_allclose(found["lpf"].value[0], alone.value, rtol=1e-5)


def test_the_whole_table_traces_for_a_population():
    apply_fn, loss_fn, params, x, y = problem()
    population = jax.tree.map(lambda p: jnp.stack([p, p, p]), params)
    measure = lambda params, start: flatness.all_measures(
        apply_fn, loss_fn, params, x, y, key=new_key(), initial_params=start
    )
    shapes = jax.eval_shape(jax.vmap(measure), population, population)
    assert set(flatness.MEASURES) <= set(shapes)
    for value in shapes.values():
        leaves = jax.tree.leaves(value)
        assert all(leaf.shape == (3,) for leaf in leaves)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lpf", {"std": 0.0}, "`std` must be positive"),
        ("lpf", {"num_samples": 1}, "`num_samples` must be an integer of at least 2"),
        ("lpf", {"quantity": "both"}, "`quantity` must be one of 'loss', 'rise'"),
        ("lpf", {"scale": "layers"}, "`scale` must be one of"),
        ("lpf", {"key": 0}, "`key` must be one typed random key"),
        ("lpf", {"batch_size": 0}, "`batch_size` must be None"),
        ("epsilon_sharpness", {"rise": -1.0}, "`rise` must be positive"),
        ("pac_bayes", {"delta": 1.0}, "`delta` must be between 0 and 1"),
        ("pac_bayes", {"initial_params": {}}, "`initial_params` must have the struct"),
        ("local_entropy", {"gamma": jnp.nan}, "`gamma` must be positive and finite"),
        ("local_entropy", {"num_chains": 2}, "`num_chains` must be an integer of at"),
        ("sam_sharpness", {"rho": 0.0}, "`rho` must be positive and finite"),
        ("sam_sharpness", {"rho": jnp.ones(2)}, "`rho` must be .* shape"),
        ("sam_sharpness", {"num_steps": 0}, "`num_steps` must be an integer of at"),
        ("sam_sharpness", {"key": 0}, "`key` must be one typed random key"),
        ("asam_sharpness", {"eta": -1.0}, "`eta` must be finite and at least 0"),
        ("asam_sharpness", {"biases": "none"}, "`biases` must be one of"),
        ("m_sharpness", {"minibatch_size": 7}, "must be at most half of the 12"),
        ("m_sharpness", {"neighbourhood": "box"}, "`neighbourhood` must be one of"),
        ("keskar_sharpness", {"epsilon": 0.0}, "`epsilon` must be positive"),
        ("effective_dimension", {"regularization": None}, "`regularization` must be"),
        ("fisher_rao", {"matrix": "fisher"}, "`matrix` must be one of 'ggn'"),
        ("noise_alignment", {"matrix": "fisher"}, "`matrix` must be one of 'ggn'"),
        ("noise_alignment", {"num_samples": 1}, "`num_samples` must be an integer"),
        ("relative_flatness", {"select": lambda path: "b1" in path}, "must choose ker"),
        ("relative_flatness", {"select": lambda path: False}, "at least one leaf"),
    ],
)
def test_bad_options(user_land, name, options, message):
    given: dict[str, Any] = {"key": new_key()} if flatness.MEASURES[name].random else {}
    given |= {"initial_params": problem()[2]} if name == "pac_bayes" else {}
    given |= {"minibatch_size": 2} if name == "m_sharpness" else {}
    with pytest.raises(ValueError, match=message):
        getattr(flatness, name)(*problem(), **{**given, **options})


def test_bad_problems(user_land):
    apply_fn, loss_fn, params, x, y = problem()
    for name in ("lpf", "sam_sharpness", "fisher_rao", "noise_alignment"):
        row = flatness.MEASURES[name]
        given = {"key": new_key()} if row.random else {}
        with pytest.raises(ValueError, match="`y` must have as many examples"):
            row.function(apply_fn, loss_fn, params, x, y[:-1], **given)
        with pytest.raises(ValueError, match="one loss per example"):
            row.function(apply_fn, lambda f, y: f, params, x, y, **given)
    with pytest.raises(ValueError, match="at least two classes on its last axis"):
        flatness.shannon_entropy(
            lambda w, x: x @ w, lambda f, y: f, jnp.ones(4), x, jnp.ones(12)
        )
    pair = lambda params, x: (apply_fn(params, x), x)
    first = lambda outputs, y: loss_fn(outputs[0], y)
    with pytest.raises(ValueError, match=r"must return one array .* returned tuple"):
        flatness.shannon_entropy(pair, first, params, x, y)
    measures = lambda **options: flatness.all_measures(
        *problem(), key=new_key(), **options
    )
    with pytest.raises(ValueError, match="`names` must name rows"):
        measures(names=["lpf", "flatness"])
    with pytest.raises(ValueError, match="`options` must name rows"):
        measures(names=["lpf"], options={"sam": {}})
    with pytest.raises(ValueError, match="`initial_params` must be given"):
        measures(names=["pac_bayes"])
    for names in ([], ()):
        with pytest.raises(ValueError, match="`names` must name at least one row"):
            measures(names=names)
    for options, message in (
        ({"lpf": {"key": jax.random.key(7)}}, "must not hold `key`, which all"),
        ({"lpf": {"initial_params": params}}, "must not hold `initial_params`"),
        ({"lpf": 3}, r"`options\['lpf'\]` must map names .* of type int"),
        ({"sam_sharpness": {"rho": 0.1}}, r"'sam_sharpness' is none of \['lpf'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            measures(names="lpf", options=options)
    for name in ("m_sharpness", "batch_sharpness"):
        with pytest.raises(ValueError, match="`x` must hold at least two examples for"):
            flatness.all_measures(
                apply_fn, loss_fn, params, x[:1], y[:1], key=new_key(), names=name
            )
