"""Norm measures of a perceptron and a convolutional network, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import models
from jaxtheory.bounds import norm_measures

MODEL = models.MLP((7, 5), num_outputs=3)
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
LAYERS = ("layer_1", "layer_2", "output")


def network(seed, bias=0.3):
    """Parameters in NumPy, and the same where training began."""
    rng, sizes = np.random.default_rng(seed), (4, 7, 5, 3)
    shapes = dict(zip(LAYERS, itertools.pairwise(sizes), strict=True))
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    start = {n: {"kernel": draw(*s), "bias": 0 * draw(s[1])} for n, s in shapes.items()}
    move = lambda a: a + 0.5 * draw(*a.shape) + bias * (a.ndim == 1)
    return {"params": jax.tree.map(move, start)}, {"params": start}


def forward(params, x):
    h = np.asarray(x, np.float64)
    for name in LAYERS:
        layer = params["params"][name]
        h = h @ layer["kernel"].astype(float) + layer["bias"]
        h = np.maximum(h, 0) if name != "output" else h
    return h


def oracle(params, start, x, y, quantile=0.1):
    """The definitions, kernel by kernel in double precision."""
    w = [params["params"][n]["kernel"].astype(float) for n in LAYERS]
    d = [a - start["params"][n]["kernel"] for a, n in zip(w, LAYERS, strict=True)]
    spec = np.array([np.linalg.norm(a, 2) for a in w])
    fro = np.array([np.sqrt((a**2).sum()) for a in w])
    fro_d = np.array([np.sqrt((a**2).sum()) for a in d])
    columns = np.array([sum(np.sqrt((c**2).sum()) for c in a.T) for a in d])
    f = forward(params, x)
    margins = [f[i, c] - max(np.delete(f[i], c)) for i, c in enumerate(y)]
    g = np.quantile(margins, quantile)
    squares = jax.tree.map(lambda a: a.astype(float) ** 2, params)
    path = forward(squares, np.ones((1, 4))).sum()
    complexity = spec.prod() * sum((columns / spec) ** (2 / 3)) ** 1.5
    found = {
        "num_params": sum(a.size for a in jax.tree.leaves(params)),
        "margin": g,
        "inverse_margin": 1 / g**2,
        "param_norm": sum(fro**2),
        "fro_dist": sum(fro_d**2),
        "dist_spec_init": sum(np.linalg.norm(a, 2) ** 2 for a in d),
        "sum_of_squared_spec": sum(spec**2),
        "fro_over_spec": sum(fro**2 / spec**2),
        "log_spec_orig_main": np.log((spec**2).prod() * sum(fro**2 / spec**2) / g**2),
        "log_spec_init_main": np.log((spec**2).prod() * sum(fro_d**2 / spec**2) / g**2),
        "log_spectral_complexity": np.log(complexity),
        "log_spectral_complexity_over_margin": np.log(complexity / g),
        "path_norm": path,
        "path_norm_over_margin": path / g**2,
    }
    for name, norms in (("spec", spec), ("fro", fro)):
        product = (norms**2).prod()
        found[f"log_prod_of_{name}"] = np.log(product)
        found[f"log_prod_of_{name}_over_margin"] = np.log(product / g**2)
        found[f"log_sum_of_{name}"] = np.log(3 * product ** (1 / 3))
        root = (product / g**2) ** (1 / 3)
        found[f"log_sum_of_{name}_over_margin"] = np.log(3 * root)
    return found


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_matches_the_definitions_for_a_stack_of_networks_with_one_trace():
    traces = []

    def apply(params, x):
        traces.append(x.shape)
        return MODEL.apply(params, x)

    networks = [network(seed) for seed in range(3)]
    y = forward(networks[0][0], X).argmax(1)  # network 0 makes no error
    measure = lambda p, s: norm_measures(
        apply, p, jnp.asarray(X), jnp.asarray(y), initial_params=s, batch_size=16
    )
    params, starts = (stack(trees) for trees in zip(*networks, strict=True))
    found = jax.vmap(measure)(params, starts)
    count = len(traces)
    jax.vmap(measure)(starts, params)
    assert len(traces) == count
    expected = oracle(*networks[0], X, y)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][0], value, rtol=2e-5, err_msg=name)
    # The others err on most examples: no margin, not a wrong one.
    for name in found:
        infinite = "over_margin" in name or "main" in name or "inverse" in name
        assert np.isinf(found[name][1:]).all() == infinite, name
    assert (found["margin"][1:] < 0).all()


def test_double_precision(x64):
    params, start = network(0)
    y = forward(params, X).argmax(1)
    wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, float), tree)
    found = norm_measures(
        MODEL.apply,
        wide(params),
        jnp.asarray(X, float),
        jnp.asarray(y),
        initial_params=wide(start),
        margin_quantile=0.25,
    )
    for name, value in oracle(params, start, X, y, 0.25).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, err_msg=name)


def convolution_norm(kernel, size):
    """Norm of the linear map between images, from its dense matrix."""
    channels = kernel.shape[2]
    apply = lambda x: jax.lax.conv_general_dilated(
        x.reshape(1, size, size, channels),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).ravel()
    basis = jnp.eye(size * size * channels)
    return np.linalg.norm(np.asarray(jax.jit(jax.vmap(apply))(basis)), 2)


def test_a_convolution_is_its_matrix_and_that_brackets_the_map():
    model = models.CNN((3,), num_outputs=2)
    x = jnp.ones((4, 6, 6, 2))
    params = model.init(jax.random.key(0), x[:1])
    start = jax.tree.map(jnp.zeros_like, params)
    y = jnp.zeros(4, int)
    found = norm_measures(model.apply, params, x, y, initial_params=start)
    w = np.asarray(params["params"]["layer_1"]["kernel"])
    v = np.asarray(params["params"]["output"]["kernel"])
    norm = np.linalg.norm(w.reshape(18, 3), 2)
    expected = norm**2 + np.linalg.norm(v, 2) ** 2
    np.testing.assert_allclose(found["sum_of_squared_spec"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["dist_spec_init"], expected, rtol=1e-5)
    assert norm < convolution_norm(w, 6) < 3 * norm
    # One layer alone: its sum is itself.
    one = norm_measures(
        model.apply,
        params,
        x,
        y,
        initial_params=start,
        select=lambda path: "layer_1" in path and "kernel" in path,
    )
    np.testing.assert_allclose(one["sum_of_squared_spec"], norm**2, rtol=1e-5)
    np.testing.assert_allclose(one["log_sum_of_spec"], 2 * np.log(norm), rtol=1e-5)


def linear(params, x):
    return x @ params["w"] @ params["v"]


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15])
def test_norms_neither_under_nor_overflow(scale):
    params = {"w": scale * jnp.eye(2), "v": jnp.eye(2) / scale}
    start = jax.tree.map(jnp.zeros_like, params)
    data = (jnp.eye(2), jnp.arange(2))
    found = norm_measures(linear, params, *data, initial_params=start)
    for name, value in (("log_prod_of_spec", 0.0), ("log_prod_of_fro", 2 * np.log(2))):
        np.testing.assert_allclose(found[name], value, atol=2e-5)
    np.testing.assert_allclose(found["fro_over_spec"], 4.0, rtol=2e-5)
    np.testing.assert_allclose(found["log_spec_init_main"], np.log(4), rtol=2e-5)


def test_a_layer_of_zeros_is_not_nan_and_what_is_not_finite_is():
    params = {"w": jnp.eye(2), "v": jnp.zeros((2, 2))}
    data = (jnp.eye(2), jnp.arange(2))
    found = norm_measures(linear, params, *data, initial_params=params)
    assert found["log_prod_of_spec"] == -np.inf
    assert found["log_prod_of_spec_over_margin"] == np.inf
    assert found["fro_over_spec"] == 2
    assert not any(np.isnan(value) for value in found.values())
    broken = {"w": params["w"], "v": params["v"] * jnp.nan}
    found = norm_measures(linear, broken, *data, initial_params=params)
    finite = {name for name, value in found.items() if not np.isnan(value)}
    assert finite == {"num_params"}


P = {"w": jnp.eye(2), "v": jnp.eye(2)}
GOOD = {"params": P, "x": jnp.eye(2), "y": jnp.arange(2), "initial_params": P}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": jnp.eye(2)}, r"`y` must be a vector of class indices.*argmax"),
        ({"y": jnp.arange(2) + 1}, r"`y` must hold class indices in \[0, 2\).*1 to 2"),
        ({"y": jnp.arange(3)}, r"`y` must have as many examples"),
        ({"x": jnp.eye(2, dtype=int)}, r"`x` must be floating-point.*int32"),
        ({"x": None}, r"`x` must be one array of inputs.*NoneType"),
        ({"x": {"a": jnp.eye(2)}}, r"`x` must be one array of inputs.*dict"),
        ({"initial_params": {"w": jnp.eye(2)}}, r"`initial_params` must have the str"),
        ({"params": {}}, r"`params` must hold at least one array"),
        ({"margin_quantile": 10}, r"`margin_quantile` must be in \[0, 1\]"),
        ({"batch_size": 0}, r"`batch_size` must be None"),
        ({"select": lambda path: False}, r"`select` must choose at least one leaf"),
        ({"apply_fn": 3}, r"`apply_fn` must be a function"),
        ({"apply_fn": lambda p, x: x @ p["w"] > 0}, r"floating-point outputs.*bool"),
        (
            {"apply_fn": lambda p, x: x @ p["w"] + 0j},
            r"floating-point outputs.*complex",
        ),
        ({"apply_fn": lambda p, x: x[:, 0] * p["w"][0, 0]}, r"outputs \[2, k\].*\(-f"),
    ],
)
def test_bad_input_names_the_fix(change, message, user_land):
    given = {"apply_fn": linear} | GOOD | change
    order = [given.pop(name) for name in ("apply_fn", "params", "x", "y")]
    with pytest.raises(ValueError, match=message):
        norm_measures(*order, **given)


def test_traced_values_out_of_range_have_no_margin(user_land):
    measure = lambda y, q: norm_measures(
        linear, P, jnp.eye(2), y, initial_params=P, margin_quantile=q
    )
    found = jax.jit(jax.vmap(measure, (0, 0)))(
        jnp.array([[0, 1], [0, 2], [-1, 1], [0, 1]]), jnp.array([1.0, 0.5, 0.5, 1.5])
    )
    for name in ("margin", "inverse_margin", "path_norm_over_margin"):
        np.testing.assert_array_equal(np.isnan(found[name]), [False, True, True, True])
    np.testing.assert_allclose(found["path_norm"], 2)
    # A whole number is a quantile too.
    assert measure(jnp.arange(2), 0)["margin"] == 1


def test_empty_arrays_are_no_kernels(user_land):
    params = P | {"z": jnp.zeros((0, 3))}
    data = (jnp.eye(2), jnp.arange(2))
    with pytest.raises(ValueError, match=r"`select` must choose kernels.*\['z'\]"):
        norm_measures(linear, params, *data, initial_params=params)


def test_vectors_are_no_kernels(user_land):
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"`select` must choose kernels.*none"):
        norm_measures(
            lambda p, x: x * p["w"][None],
            params,
            jnp.eye(2),
            jnp.arange(2),
            initial_params=params,
        )
