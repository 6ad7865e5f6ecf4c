"""Structured NTKs of many architectures against explicit Jacobians of the batch."""

import functools
import itertools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from jaxtheory import kernels
from jaxtheory.kernels import _plan
from jaxtheory.models import CNN

pytestmark = pytest.mark.usefixtures("user_land")


class Residual(nn.Module):
    """Two convolutions around a skip connection, then a strided grouped one."""

    @nn.compact
    def __call__(self, x):
        h = nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x))
        h = x @ jnp.ones((2, 4)) + nn.Conv(4, (2, 3), use_bias=False)(nn.relu(h))
        h = nn.Conv(4, (3, 2), strides=(2, 1), feature_group_count=2, padding="VALID")(
            h
        )
        h = nn.ConvTranspose(3, (2, 2), strides=(2, 2))(jnp.tanh(h))
        return nn.Dense(2)(h.reshape(h.shape[0], -1))


class Transformer(nn.Module):
    """Tokens, attention, LayerNorm; logits by the embedding itself."""

    tied: bool

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(200, 4)  # so large that no gradient of it is formed
        shape = (1, tokens.shape[1], 4)
        h = embed(tokens) + self.param("place", nn.initializers.normal(0.1), shape)
        a = nn.LayerNorm()(h)
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(a, a)
        h = h + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(h))))
        return (
            embed.attend(h).mean(axis=1)[:, :2] if self.tied else nn.Dense(2)(h[:, -1])
        )


class Layer(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return jnp.tanh(nn.Dense(3)(h)), None


class Scanned(nn.Module):
    """Layers of their own parameters, one loop over them, recomputed in reverse."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            reverse=True,
        )
        return nn.Dense(2)(layers()(x, None)[0])


def recurrent(params, x):
    """One cell, used again at every step of a loop."""
    cell = lambda h, now: (jnp.tanh(h @ params["h"] + now @ params["x"]), None)
    h = jax.lax.scan(cell, jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1))[0]
    # One bias, repeated before a loop that takes it apart again.
    biases = jnp.broadcast_to(params["b"][None], (4, 3))
    h = jax.lax.scan(lambda h, b: (jnp.sin(h + b[None]), None), h, biases)[0]
    return h @ params["v"]


@jax.custom_jvp
def straightened(w, x):
    """A layer with a derivative rule that no computation of its own gives."""
    return jnp.sign(x @ w)


@straightened.defjvp
def _(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    return straightened(w, x), 2.0 * (x @ dw + dx @ w)


@jax.custom_vjp
def halved(w, x):
    return x @ w


halved.defvjp(
    lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g / 2, g @ kept[0].T)
)


def shared(params, x):
    """One matrix four times: scaled, transposed, squared, and in slices."""
    w = params["w"]
    h = jnp.tanh(x @ w) @ (0.5 * w) - jnp.sin(x @ w.T)
    h = h + x @ (w @ w)
    return h @ params["v"] + jnp.cos(h @ params["g"]) * params["b"]


def sliced(params, x):
    """Parts of one matrix; a part that overlaps; a product with a mask; a gate."""
    q, k, v = jnp.split(x @ params["w"], 3, axis=-1)
    h = q * k @ params["u"][:3] + v @ params["u"][3:]
    h = h + x[:, :4] @ params["o"][:4] + x[:, :4] @ params["o"][2:]
    gate = jax.nn.sigmoid(params["s"])
    return gate * h @ (params["m"] * jnp.tri(3)[:, :2]) / (1 + params["s"] ** 2)


def normal(seed, *shape):
    """Drawn by NumPy, which compiles nothing."""
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def normals(seed, **shapes):
    draws = normal(seed, sum(map(math.prod, shapes.values()))) / 2
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = zip(shapes.items(), np.split(draws, ends[:-1]), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in parts}


def flax(model, x):
    params = jax.jit(model.init)(jax.random.key(0), x[:1])
    return model.apply, jax.tree.map(np.asarray, params), x


def one_array(apply_fn, params, x):
    """A model whose parameters are all parts of one vector, and two numbers before."""
    flat, unravel = ravel_pytree(params)

    def of_vector(flat, x):
        return flat[1] * apply_fn(unravel(flat[2:]), flat[0] + x)

    return of_vector, np.concatenate([np.float32([0.1, 0.7]), flat]), x


def equinox_network(x):
    model = eqx.nn.MLP(x.shape[1], 2, 5, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, x


def nnx_network(x):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(x.shape[1], 5, rngs=rngs)
            self.last = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.silu(self.first(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)))
    return lambda p, x: nnx.merge(graph, p)(x), params, x


def random_network(seed):
    """A network put together by chance: layers, activations, skips, shared weights."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(2, 5, size=4)
    params = {
        f"w{i}": (a, b) for i, (a, b) in enumerate(itertools.pairwise([6, *widths]))
    }
    params |= {f"b{i}": (1, b) for i, b in enumerate(widths)}
    params |= {f"s{i}": (b, b) for i, b in enumerate(widths)}
    acts = [jnp.tanh, nn.relu, nn.gelu, jnp.sin]
    choice = rng.integers(0, 4, size=4)
    skip, transposed = rng.integers(0, 2, size=4), rng.integers(0, 2, size=4)

    def apply_fn(params, x):
        for i in range(4):
            x = acts[choice[i]](x @ params[f"w{i}"] + params[f"b{i}"])
            square = params[f"s{i}"].T if transposed[i] else params[f"s{i}"]
            for _ in range(choice[i]):
                x = skip[i] * x + jnp.tanh(jnp.einsum("ab,na->nb", square, x))
        return x

    return apply_fn, normals(seed, **params)


IMAGES, VECTORS, TOKENS = (4, 4, 2), (6,), (3,)


@functools.cache
def make(name):
    """A model, its parameters, and five inputs of which two see the same token."""
    vectors, images = normal(1, 5, *VECTORS), normal(2, 5, *IMAGES)
    tokens = np.random.default_rng(3).integers(0, 5, (5, *TOKENS), np.int32)
    if name.startswith("random"):
        return *random_network(int(name[-1])), vectors
    return {
        "cnn": lambda: flax(CNN(channels=(2, 3), num_outputs=2), images),
        "residual": lambda: flax(Residual(), images),
        "transformer": lambda: flax(Transformer(tied=False), tokens),
        "tied": lambda: flax(Transformer(tied=True), tokens),
        "scanned": lambda: flax(Scanned(), vectors[:, :3]),
        "recurrent": lambda: (
            recurrent,
            normals(9, h=(3, 3), x=(8, 3), b=(3,), v=(3, 2)),
            images.reshape(5, 4, 8),
        ),
        "shared": lambda: (
            shared,
            normals(4, w=(6, 6), v=(6, 2), g=(6, 2), b=(1, 2)),
            vectors,
        ),
        "sliced": lambda: (
            sliced,
            normals(5, w=(6, 9), u=(6, 3), o=(6, 3), m=(3, 2), s=()),
            vectors,
        ),
        "rule": lambda: (
            lambda p, x: straightened(p["v"], straightened(p["w"], x)) + x @ p["u"],
            normals(6, w=(6, 4), v=(4, 2), u=(6, 2)),
            vectors,
        ),
        "reverse rule": lambda: (
            lambda p, x: halved(p["v"], jnp.tanh(x @ p["w"])),
            normals(7, w=(6, 4), v=(4, 2)),
            vectors,
        ),
        "vector": lambda: one_array(*make("residual")),
        "scanned vector": lambda: one_array(*make("scanned")),
        "equinox": lambda: equinox_network(vectors),
        "nnx": lambda: nnx_network(vectors),
    }[name]()


NAMES = [
    "cnn",
    "residual",
    "transformer",
    "tied",
    "scanned",
    "recurrent",
    "shared",
    "sliced",
    "rule",
    "reverse rule",
    "vector",
    "scanned vector",
    "equinox",
    "nnx",
    "random 0",
    "random 1",
]


def oracle(apply_fn, params, x):
    """The full kernel of each array from Jacobians of the whole batch, in float64."""
    jacobian = jax.jit(jax.jacrev(apply_fn))(params, x)
    n, k = jax.tree.leaves(jacobian)[0].shape[:2]
    flat = [
        np.asarray(a, np.float64).reshape(n, k, -1) for a in jax.tree.leaves(jacobian)
    ]
    return [np.einsum("ikp,jlp->ijkl", a, a) for a in flat]


def assert_close(found, expected, tolerance):
    """Entrywise agreement to `tolerance` of the largest entry."""
    assert found.shape == expected.shape
    error = np.max(np.abs(np.asarray(found, np.float64) - expected))
    assert error <= tolerance * np.max(np.abs(expected))


def double(tree):
    floating = lambda a: np.issubdtype(a.dtype, np.floating)
    return jax.tree.map(lambda a: np.asarray(a, float) if floating(a) else a, tree)


@pytest.mark.parametrize("name", NAMES)
def test_structured_kernels_of_all_arrays_in_double(x64, name):
    apply_fn, params, x = make(name)
    params, x = double((params, x))
    layers = oracle(apply_fn, params, x)
    found = kernels.empirical_ntk(
        apply_fn, params, x, outputs="full", method="sites", per_layer=True
    )
    assert jax.tree.structure(found) == jax.tree.structure(params)
    scale = np.abs(sum(layers)).max()
    for kernel, layer in zip(jax.tree.leaves(found), layers, strict=True):
        np.testing.assert_allclose(kernel, layer, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("method", ["auto", "jacobian", "vector_products"])
@pytest.mark.parametrize("name", ["scanned", "shared"])
def test_all_methods_agree_in_double(x64, method, name):
    apply_fn, params, x = make(name)
    params, x = double((params, x))
    expected = sum(oracle(apply_fn, params, x))[:, :3]
    found = kernels.empirical_ntk(
        apply_fn, params, x, x[:3], outputs="full", method=method
    )
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("name", ["residual", "shared"])
def test_single_precision_in_ragged_batches(name):
    apply_fn, params, x = make(name)
    full = sum(oracle(apply_fn, params, x))
    diagonal = np.einsum("ijkk->ijk", full)
    found = kernels.empirical_ntk(
        apply_fn, params, x, outputs="diagonal", method="sites", batch_size=2
    )
    assert_close(found, diagonal, 1e-5)
    found = kernels.empirical_ntk(apply_fn, params, x, method="sites")
    assert_close(found, diagonal.sum(-1), 1e-5)


@pytest.mark.parametrize(
    ("name", "differentiated"),
    [
        ("transformer", set()),
        ("tied", set()),
        ("residual", set()),
        ("shared", set()),
        ("recurrent", {"b"}),
        ("vector", set()),
        ("scanned vector", set()),
        ("sliced", {"o", "s"}),
        ("rule", set()),
        ("reverse rule", {"v"}),
    ],
)
def test_finds_every_product(name, differentiated):
    """Only what is no product, or overlaps in part, is differentiated as it is."""
    apply_fn, params, x = make(name)
    plan = _plan.make(
        apply_fn, params, x, method="sites", outputs="full", chunks=(5, 5)
    )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = {paths[leaf][-1].key if paths[leaf] else "all" for leaf in plan.jacobian}
    assert found == differentiated


def test_kernel_of_a_lookup_forms_no_gradient_of_the_table():
    rows, width, n = 20_000, 8, 6
    params = {"table": jnp.ones((rows, width)), "v": jnp.ones((width, 3))}
    tokens = jnp.arange(4 * n).reshape(n, 4) % 7
    model = lambda p, t: jnp.tanh(p["table"][t].sum(axis=1)) @ p["v"]
    measure = jax.jit(lambda p, t: kernels.empirical_ntk(model, p, t, method="sites"))
    memory = measure.lower(params, tokens).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * rows * width  # nor a copy of the table


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full"])
def test_wide_layers_form_no_gradient(outputs):
    n, width, k = 8, 512, 3
    params = normals(8, a=(width, width), b=(width, width), c=(width, k))
    model = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
    measure = lambda p, x: kernels.empirical_ntk(model, p, x, outputs=outputs)
    x = jnp.ones((n, width))
    memory = jax.jit(measure).lower(params, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * width * width


def test_many_examples_in_two_halves(x64):
    """An odd number, all outputs and layers, against the Jacobian taken at once."""
    params = normals(11, a=(6, 5), b=(1, 5), c=(5, 2))
    model = lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"]
    x = normal(12, 17, 6)
    params, x = double((params, x))
    plan = _plan.make(model, params, x, method="sites", outputs="full", chunks=(17, 17))
    assert plan.in_halves
    layers = oracle(model, params, x)
    found = kernels.empirical_ntk(model, params, x, outputs="full", per_layer=True)
    for kernel, layer in zip(jax.tree.leaves(found), layers, strict=True):
        np.testing.assert_allclose(kernel, layer, rtol=0, atol=1e-13 * layer.max())
        symmetric = np.transpose(kernel, (1, 0, 3, 2))
        np.testing.assert_array_equal(kernel, symmetric)
    trace = kernels.empirical_ntk(model, params, x, method="sites")
    np.testing.assert_allclose(trace, np.einsum("ijkk->ij", sum(layers)), rtol=1e-12)


def test_factors_freeze_and_weigh_parameter_arrays():
    apply_fn, params, x = make("shared")
    layers = dict(zip(sorted(params), oracle(apply_fn, params, x), strict=True))
    scale = {"w": jnp.array(0.5), "v": 0.0, "g": 2.0, "b": 0}
    expected = 0.5 * layers["w"] + 2.0 * layers["g"]
    for method in ("sites", "vector_products"):
        found = kernels.empirical_ntk(
            apply_fn, params, x, outputs="full", method=method, param_scale=scale
        )
        assert_close(found, expected, 1e-5)
    # One number for a subtree; traced, so that nothing is known to be zero.
    nested = lambda p, x: apply_fn(p["net"], x)
    measure = jax.jit(
        lambda scale: kernels.empirical_ntk(
            nested, {"net": params}, x, outputs="full", param_scale={"net": scale}
        )
    )
    assert_close(measure(3.0), 3 * sum(layers.values()), 1e-5)
    frozen = kernels.empirical_ntk(apply_fn, params, x, param_scale=0.0)
    np.testing.assert_array_equal(frozen, np.zeros((5, 5)))


def test_a_scale_is_a_diagonal_of_the_parameter_space():
    """Zero freezes: the kernel is that of the model with the array in a closure."""
    apply_fn, params, x = make("recurrent")
    rest = {name: a for name, a in params.items() if name != "h"}
    frozen = lambda p, x: apply_fn({**p, "h": params["h"]}, x)
    scale = {name: float(name != "h") for name in params}
    found = kernels.empirical_ntk(apply_fn, params, x, param_scale=scale)
    expected = kernels.empirical_ntk(frozen, rest, x, method="jacobian")
    assert_close(found, np.asarray(expected, np.float64), 1e-5)


WRONG = {
    "method": ({"method": "fast"}, r"`method` must be one of .*'fast'"),
    "products by layer": (
        {"method": "vector_products", "per_layer": True},
        r"`per_layer` needs .* \"auto\", \"sites\" or \"jacobian\"",
    ),
    "structure": (
        {"param_scale": {"w": 1.0}},
        r"`param_scale` must have the structure of `params`",
    ),
    "shape": (
        {"param_scale": {"w": jnp.ones(2), "v": 1.0, "g": 1.0, "b": 1.0}},
        r"`param_scale\['w'\]` must be one number .* shape \(2,\)",
    ),
    "negative": (
        {"param_scale": {"w": -1.0, "v": 1.0, "g": 1.0, "b": 1.0}},
        r"`param_scale\['w'\]` must be a finite number >= 0, but was -1.0",
    ),
    "text": ({"param_scale": "all"}, r"`param_scale.*` must be one number .*'all'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_options(case):
    changes, message = WRONG[case]
    apply_fn, params, x = make("shared")
    with pytest.raises(ValueError, match=message):
        kernels.empirical_ntk(apply_fn, params, x, **changes)
