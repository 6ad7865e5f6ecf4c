"""`batching` against plain sums in NumPy, and what it compiles to when sharded."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtheory import batching

# (examples, batch size): unchunked, single examples, ragged, even, exact, too large.
CHUNKS = [(7, None), (7, 1), (7, 3), (8, 4), (7, 7), (7, 9)]


def whole_numbers(*shape):
    """Data whose sums are exact in float32, in whatever order they are taken."""
    return np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)


def counted_sum(chunk, weights):
    return {"count": jnp.sum(weights), "sum": weights @ chunk["x"]}


def tanh_sum(w, x, **options):
    part = lambda chunk, weights: jnp.sum(weights * jnp.tanh(chunk @ w))
    return batching.sum_examples(part, x, **options)


@pytest.mark.parametrize(("n", "batch_size"), CHUNKS)
def test_sum_counts_every_example_once(n, batch_size):
    data = {"x": whole_numbers(n, 3), "unused": jnp.arange(n)}
    total = batching.sum_examples(counted_sum, data, batch_size=batch_size)
    assert total["count"] == n
    np.testing.assert_array_equal(total["sum"], data["x"].sum(0))


@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_sum_over_lanes_counts_every_example_once(batch_size):
    x = whole_numbers(20, 3)
    total = batching.sum_examples(counted_sum, {"x": x}, batch_size=batch_size, lanes=4)
    assert total["count"] == 20
    np.testing.assert_array_equal(total["sum"], x.sum(0))


@pytest.mark.parametrize(("n", "batch_size"), CHUNKS)
def test_map_returns_every_row_in_its_place(n, batch_size):
    data = (whole_numbers(n, 3), jnp.arange(n))
    rows = lambda chunk: {"outer": chunk[0][:, None] * 2, "index": chunk[1]}
    mapped = batching.map_examples(rows, data, batch_size=batch_size)
    np.testing.assert_array_equal(mapped["outer"], 2 * data[0][:, None])
    np.testing.assert_array_equal(mapped["index"], np.arange(n))


@pytest.mark.parametrize("double", [False, True])
def test_gradient_of_a_chunked_sum(double):
    with jax.enable_x64(double):
        rng = np.random.default_rng(1)
        x, w = jnp.asarray(rng.normal(size=(7, 3))), jnp.asarray(rng.normal(size=3))
        value, gradient = jax.jit(
            jax.value_and_grad(lambda w: tanh_sum(w, x, batch_size=3))
        )(w)
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    assert gradient.dtype == (np.float64 if double else np.float32)
    # A sum of 7 terms of size at most |x|: 50 roundings cover it.
    atol = 50 * np.finfo(gradient.dtype).eps * np.abs(x).max()
    np.testing.assert_allclose(value, np.tanh(x @ w).sum(), rtol=0, atol=atol)
    slopes = 1 - np.tanh(x @ w) ** 2
    np.testing.assert_allclose(gradient, slopes @ x, rtol=0, atol=atol)


def test_gradient_of_a_chunked_map():
    x = jnp.asarray(whole_numbers(7, 3))

    def weighted(w):
        rows = batching.map_examples(lambda x: x @ w, x, batch_size=3)
        return jnp.arange(7.0) @ rows

    gradient = jax.jit(jax.grad(weighted))(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.arange(7) @ np.asarray(x))


def test_reverse_mode_stores_one_chunk():
    x, w = jnp.ones((1024, 8)), jnp.ones((8, 64))

    def memory(batch_size):
        part = lambda w: lambda x, weights: weights @ jnp.tanh(x @ w).sum(1)
        loss = lambda w: batching.sum_examples(part(w), x, batch_size=batch_size)
        analysis = jax.jit(jax.grad(loss)).lower(w).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    everything = 4 * 1024 * 64
    assert memory(None) >= everything
    assert memory(16) < everything / 8


def test_vmap_over_parameters():
    x = jnp.asarray(whole_numbers(7, 3))
    many = jnp.stack([jnp.ones(3), jnp.zeros(3)])
    part = lambda w: batching.sum_examples(lambda x, r: r @ (x @ w), x, batch_size=2)
    np.testing.assert_array_equal(jax.vmap(part)(many), [np.asarray(x).sum(), 0])


def test_new_values_and_more_chunks_cost_no_new_trace():
    traces = []

    def part(chunk, weights):
        traces.append(chunk.shape)
        return weights @ chunk

    total = jax.jit(lambda x: batching.sum_examples(part, x, batch_size=2))
    total(jnp.ones((5, 2)))
    once = len(traces)
    assert total(jnp.zeros((5, 2))).shape == (2,)
    assert len(traces) == once
    total(jnp.ones((31, 2)))
    assert len(traces) == 2 * once


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 3}, {"batch_size": 1, "lanes": 2}]
)
def test_weights_promote_nothing(options, x64):
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((8, 2), dtype)
        total = batching.sum_examples(lambda x, w: w @ x, x, **options)
        assert total.dtype == dtype


# Sharding


def sharded(mesh, array, *axes):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))


def collectives(text):
    """The collective operations in (a part of) a compiled program, by name."""
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf" ({names})(?:-start)?\(", text)


@pytest.mark.parametrize("batch_size", [None, 4, 3])
def test_sharded_sum_is_one_all_reduce_after_the_loop(eight_devices, batch_size):
    x = np.random.default_rng(2).normal(size=(64, 3)).astype(np.float32)
    data = sharded(eight_devices, x, "data")
    lanes = batching.num_shards(data)
    assert lanes == 8

    def loss(w, x):
        part = lambda x, weights: jax.value_and_grad(
            lambda w: jnp.sum(weights * jnp.tanh(x @ w))
        )(w)
        return batching.sum_examples(part, x, batch_size=batch_size, lanes=lanes)

    w = jnp.ones(3)
    program = jax.jit(loss).lower(w, data).compile()
    text = program.as_text() or ""
    entry = text[text.index("\nENTRY ") :]
    assert (" while(" in text) == (batch_size is not None)
    assert collectives(text) == ["all-reduce"]
    assert collectives(entry[: entry.index("\n}")]) == ["all-reduce"]

    value, gradient = program(w, data)
    slopes = 1 - np.tanh(x.sum(1)) ** 2
    # Sums of 64 terms of size at most |x|.
    atol = 64 * np.finfo(np.float32).eps * np.abs(x).max()
    np.testing.assert_allclose(value, np.tanh(x.sum(1)).sum(), rtol=0, atol=atol)
    np.testing.assert_allclose(gradient, slopes @ x, rtol=0, atol=atol)


def test_num_shards():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x = np.ones((8, 2), np.float32)
    assert batching.num_shards(x) == 1
    assert batching.num_shards(jnp.ones(3)) == 1
    assert batching.num_shards(sharded(mesh, x, "data")) == 4
    assert batching.num_shards(sharded(mesh, x, ("data", "model"))) == 8
    assert batching.num_shards(sharded(mesh, x, None, "model")) == 1
    assert batching.num_shards((sharded(mesh, x, "data"), x)) == 4


def test_num_shards_of_a_traced_array(eight_devices):
    asked = []
    jax.jit(lambda x: asked.append(batching.num_shards(x)))(
        sharded(eight_devices, np.ones(8), "data")
    )
    assert asked == [1]


def test_explicit_axes_are_refused_with_the_remedy():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"`data` must be .*automatic axes.*make_mesh"):
        batching.num_shards(sharded(mesh, np.ones(8), "data"))
    with pytest.raises(ValueError, match="automatic axes"):
        batching.num_shards((jnp.ones(8), sharded(mesh, np.ones(8), "data")))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_many_chunks_add_up_in_half_precision(dtype):
    count = lambda x, weights: jnp.sum(weights.astype(x.dtype) * x)
    total = batching.sum_examples(count, jnp.ones(6000, dtype), batch_size=2)
    assert total.dtype == dtype
    # One rounding at the end: half a unit in the last place.
    assert abs(float(total) - 6000) <= 6000 * float(jnp.finfo(dtype).eps) / 2


# Bad input


def test_check_examples_returns_the_common_number():
    assert batching.check_examples(x=np.ones((5, 2)), y=[jnp.ones(5)], z=None) == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": 1.0}, r"`x` must have examples.*scalar.*shape \[n, \.\.\.\]"),
        ({"x": np.ones((0, 2))}, r"`x` must hold at least one.*shape \(0, 2\)"),
        (
            {"x": np.ones((3, 2)), "y": {"label": np.ones(4)}},
            r"`y\['label'\]` must have as many examples \(axis 0\) as `x`.*"
            r"\(4,\) against \(3, 2\).*the same examples",
        ),
        ({"x": None}, "no array was given as `x`"),
        ({}, "no array was given"),
    ],
)
def test_check_examples_names_what_is_wrong(arrays, message):
    with pytest.raises(ValueError, match=message):
        batching.check_examples(**arrays)


def test_check_params_takes_every_floating_dtype():
    params = {"w": jnp.ones(2), "b": np.float64(1.0), "h": jnp.ones(1, jnp.bfloat16)}
    assert batching.check_params(params) is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"`params` must hold at least one array.*PyTreeDef"),
        ({"w": jnp.ones(2), "n": jnp.arange(3)}, r"`params\['n'\]`.*dtype int32.*Cast"),
        ({"w": jnp.ones(2), "f": jnp.tanh}, r"`params\['f'\]`.*is a .*closure"),
        ({"w": "float32"}, r"`params\['w'\]`.*is a str"),
    ],
)
def test_check_params_names_what_is_wrong(params, message):
    with pytest.raises(ValueError, match=message):
        batching.check_params(params)
    with pytest.raises(ValueError, match=message.replace("params", "bend")):
        batching.check_params(params, "bend")


def test_check_function_takes_what_is_called_and_hashed():
    class Module:
        __hash__ = None  # as of a module that holds arrays

        def __call__(self, params, x):
            return x @ params

    assert batching.check_function("apply_fn", jnp.sin) is None
    with pytest.raises(ValueError, match=r"`apply_fn` must be hashable.* type Module"):
        batching.check_function("apply_fn", Module())
    with pytest.raises(ValueError, match=r"`loss_fn` must be a function, .* type str"):
        batching.check_function("loss_fn", "mse")


@pytest.mark.parametrize(
    ("key", "was"),
    [
        (0, "is 0"),
        (None, "is None"),
        (np.zeros(2, np.uint32), r"dtype uint32 and shape \(2,\)"),
        (jax.random.split(jax.random.key(0), 3), r"shape \(3,\)"),
    ],
)
def test_check_key_takes_one_typed_key(key, was):
    with pytest.raises(ValueError, match=f"`key` must be one typed random key.*{was}"):
        batching.check_key(key)


def test_check_key_takes_a_traced_key():
    key = jax.random.key(0)
    jax.jit(lambda key: batching.check_key(key))(key)
    with pytest.raises(ValueError, match="`first` must be"):
        jax.vmap(lambda _: batching.check_key(1, "first"))(jnp.arange(2))


def test_check_count_takes_integers_alone():
    assert batching.check_count(num=3) == 3
    assert type(batching.check_count(num=np.int64(3))) is int
    for value in (0, 1.5, 2.0, True, "3", None, np.ones(2)):
        with pytest.raises(ValueError, match="`num` must be an integer of at least 1"):
            batching.check_count(num=value)
    with pytest.raises(ValueError, match="`num` must be an integer of at least 2"):
        jax.jit(lambda n: batching.check_count(at_least=2, num=n))(4)


def test_check_number_takes_one_real_number():
    check = lambda value: batching.check_number("rate", value, lambda v: v > 0, "good")
    for value in (1, 2.0, np.float32(3), np.array(1), jnp.ones((), jnp.bfloat16)):
        check(value)
    jax.jit(check)(-1.0)  # on trust
    for value in (0, -1.0, np.nan, True, "1", None, 1j, jnp.array(-1.0), jnp.sin):
        with pytest.raises(ValueError, match="`rate` must be good, but was"):
            check(value)
    with pytest.raises(ValueError, match=r"`rate` must be good.* shape \(2,\)"):
        check(np.ones(2))


def test_losses_are_one_number_for_each_example():
    outputs, targets = jnp.ones((4, 3)), jnp.zeros((4, 3))
    squared = lambda outputs, targets: (outputs - targets) ** 2
    total = lambda outputs, targets: squared(outputs, targets).sum(-1)
    losses = batching.example_losses(total, outputs, targets, 4)
    np.testing.assert_array_equal(losses, 3 * np.ones(4))
    pair = lambda outputs, targets: (losses, losses)
    for loss_fn, was in ((squared, r"shape \(4, 3\)"), (pair, "a tuple")):
        with pytest.raises(ValueError, match=rf"with n = 4 it returned {was}"):
            batching.example_losses(loss_fn, outputs, targets, 4)


@pytest.mark.parametrize("reduce", [lambda a: a, lambda a: a.sum(-1)])
@pytest.mark.parametrize("rank_promotion", ["allow", "raise"])
def test_outputs_that_broadcast_against_targets_are_refused(reduce, rank_promotion):
    outputs, targets = jnp.ones((4, 1)), jnp.arange(4.0)
    loss_fn = lambda outputs, targets: reduce((outputs - targets) ** 2)
    message = r"its own target.*\(4, 1\) against.*\(4,\).*`y\[:, None\]`"
    evaluate = lambda o, y: batching.example_losses(loss_fn, o, y, 4)
    with jax.numpy_rank_promotion(rank_promotion):
        with pytest.raises(ValueError, match=message):
            evaluate(outputs, targets)
        with pytest.raises(ValueError, match=message):
            jax.jit(evaluate)(outputs, targets)
    wide = lambda o, y: jnp.mean((o - y) ** 2, axis=-1)
    for o, y in ((targets, outputs), (jnp.ones((4, 1, 2)), jnp.ones((4, 2)))):
        with pytest.raises(ValueError, match="`loss_fn` must compare each output with"):
            batching.example_losses(wide, o, y, 4)
    with pytest.raises(ValueError, match=r"one row of outputs .* the shape \(1, 2\)"):
        batching.example_losses(wide, jnp.ones((1, 2)), jnp.ones((4, 2)), 4)
    unlabelled = lambda outputs, targets: jnp.sum(outputs**2, axis=-1)
    losses = batching.example_losses(unlabelled, outputs, targets, 4)
    np.testing.assert_array_equal(losses, np.ones(4))
    column = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    losses = batching.example_losses(column, outputs, targets, 4)
    np.testing.assert_array_equal(losses, [1, 0, 1, 4])


@pytest.mark.parametrize("batch_size", [0, -2, 2.0, True, jnp.array(3), "all"])
def test_bad_batch_size(batch_size, user_land):
    message = rf"`batch_size` must be None .* positive .*{re.escape(repr(batch_size))}"
    with pytest.raises(ValueError, match=message):
        batching.check_batch_size(batch_size)
    with pytest.raises(ValueError, match=message):
        batching.map_examples(jnp.sin, jnp.ones(4), batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        batching.sum_examples(jnp.dot, jnp.ones(4), batch_size=batch_size)


def test_batch_sizes_of_numpy(user_land):
    data, size = jnp.arange(5.0), np.int64(2)
    dot = lambda chunk, weights: jnp.sum(weights * chunk)
    assert batching.sum_examples(dot, data, batch_size=size) == 10
    mapped = batching.map_examples(jnp.square, data, batch_size=size)
    np.testing.assert_array_equal(mapped, data**2)


@pytest.mark.parametrize("lanes", [0, -1, 3, 2.0, True])
def test_bad_lanes(lanes, user_land):
    with pytest.raises(ValueError, match=r"`lanes` must.*divides the 8.*num_shards"):
        batching.sum_examples(jnp.dot, jnp.ones(8), batch_size=1, lanes=lanes)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    ("function", "shape"), [(jnp.sum, r"\(\)"), (lambda x: x[:1], r"\(1,\)")]
)
def test_map_refuses_a_reduction(function, shape, batch_size):
    rows = lambda x: {"y": function(x)}
    with pytest.raises(ValueError, match=rf"`output\['y'\]` has shape {shape}.*sum_ex"):
        batching.map_examples(rows, jnp.ones(4), batch_size=batch_size)


def test_arrays_that_disagree():
    data = (jnp.ones(4), jnp.ones(3))
    with pytest.raises(ValueError, match=r"`data\[1\]`.*`data\[0\]`"):
        batching.sum_examples(jnp.dot, data)
    with pytest.raises(ValueError, match=r"`data\[1\]`.*`data\[0\]`"):
        batching.map_examples(jnp.sin, data)


def test_batch_statistics_are_no_parameters(user_land):
    variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.zeros(2)}}
    with pytest.raises(ValueError, match="has the collection 'batch_stats'"):
        batching.check_params(variables)
