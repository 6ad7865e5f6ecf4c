import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from jaxtheory import curvature, linalg

EPS = {jnp.float32: 1.2e-7, jnp.float64: 2.2e-16}
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def half_square(outputs, targets):
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=range(1, outputs.ndim))


def mlp(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]


def tokens(params, x):
    """Outputs [n, t, k] from inputs [n, t, d]: positions see each other."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None, None])
    return (hidden + jnp.mean(hidden, axis=1, keepdims=True)) @ params["w2"]


def problem(dtype=jnp.float32, n=17, seed=0):
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)
    params = {"w1": normal(3, 4), "b1": normal(4), "w2": normal(4, 3)}
    return params, normal(n, 3), jnp.asarray(random.integers(0, 3, n), jnp.int32)


def operators(params, x, y, **options):
    """Each operator of a classifier, by name."""
    model = (mlp, CROSS_ENTROPY, params, x, y)
    fisher = lambda **more: curvature.fisher(mlp, params, x, **more, **options)
    return {
        "hessian": curvature.hessian(*model, **options),
        "ggn": curvature.ggn(*model, **options),
        "residual_hessian": curvature.residual_hessian(*model, **options),
        "empirical_fisher": curvature.empirical_fisher(*model, **options),
        "gradient_covariance": curvature.gradient_covariance(*model, **options),
        "fisher": fisher(likelihood="softmax"),
        "sampled": fisher(likelihood="softmax", key=jax.random.key(1), num_samples=2),
        "gaussian": fisher(likelihood="gaussian"),
    }


def gradients(apply_fn, loss_fn, params, x, y):
    """The gradient of each example, [n, p], in a loop."""
    x, y = np.asarray(x), np.asarray(y)  # whose slices need no compilation
    one = jax.jit(jax.grad(lambda p, x, y: loss_fn(apply_fn(p, x), y)[0]))
    rows = [one(params, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    flat = lambda row: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(row)])
    return np.stack([flat(row) for row in rows]).astype(np.float64)


def dense(arguments):
    """Each operator of `operators` from Jacobians and gradients of examples.

    The sampled one, which knows no other way, from all examples at once.
    """
    params, x, y = arguments
    model = (mlp, CROSS_ENTROPY, params, x, y)
    rows = gradients(*model)
    hessian, ggn = oracles.dense_hessian(*model), oracles.dense_ggn(*model)
    gaussian = (mlp, half_square, params, x, jnp.zeros((len(x), 3), x.dtype))
    return {
        "hessian": hessian,
        "ggn": ggn,
        "residual_hessian": hessian - ggn,
        "empirical_fisher": rows.T @ rows / len(x),
        "gradient_covariance": np.cov(rows.T, bias=True),
        "fisher": ggn,
        "gaussian": oracles.dense_ggn(*gaussian),
        "sampled": np.asarray(columns(operators(*arguments)["sampled"])),
    }


@functools.cache
def dense_in_double():
    """Those of 48 examples, for all that compares with them."""
    return dense(problem(jnp.float64, n=48))


@jax.jit
def columns(operator):
    """The dense matrix, all columns at once under `vmap`."""
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = ravel_pytree(zeros)
    product = lambda v: ravel_pytree(operator.mv(unravel(v)))[0]
    return jax.vmap(product)(jnp.eye(flat.size, dtype=flat.dtype)).T


@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        (jnp.float32, ["residual_hessian", "gradient_covariance", "sampled"]),
        (jnp.float64, None),
    ],
)
def test_operators_equal_the_dense_ones(x64, dtype, names):
    """With a ragged last chunk: 48 = 9 * 5 + 3. The sampled one equals itself."""
    arguments, expected = problem(dtype, n=48), dense_in_double()
    if dtype == jnp.float32:  # other labels are drawn
        sampled = columns(operators(*arguments)["sampled"])
        expected = {**expected, "sampled": np.asarray(sampled)}
    chunked = operators(*arguments, batch_size=5)
    for name in names or chunked:
        ours, matrix = columns(chunked[name]), expected[name]
        assert ours.dtype == dtype
        tolerance = 30 * EPS[dtype] * np.abs(matrix).max()
        np.testing.assert_allclose(ours, matrix, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(ours, ours.T, atol=tolerance)


def block(matrix):
    """Rows and columns of ``b1`` (4) and ``w2`` (12), around those of ``w1`` (12)."""
    rows = np.r_[0:4, 16:28]
    return matrix[np.ix_(rows, rows)]


def test_blocks_are_blocks_of_the_dense_ones(x64):
    arguments, expected = problem(jnp.float64, n=48), dense_in_double()
    select = lambda path: "w1" not in path
    ours = operators(*arguments, batch_size=5, select=select)
    for name in (
        "hessian",
        "ggn",
        "residual_hessian",
        "gradient_covariance",
        "sampled",
    ):
        assert list(ours[name].in_structure()) == ["['b1']", "['w2']"]
        tolerance = 1e-14 * np.abs(expected[name]).max()
        matrix = block(expected[name])
        np.testing.assert_allclose(columns(ours[name]), matrix, atol=tolerance)


def test_a_block_differentiates_only_what_is_selected():
    """A model whose other parameters have no derivative."""

    @jax.custom_jvp
    def frozen(w):
        return w

    @frozen.defjvp
    def refuse(primals, tangents):
        raise AssertionError("differentiated")

    model = lambda p, x: jnp.tanh(x @ frozen(p["w1"])) @ p["w2"]
    params, x, y = problem()
    only = lambda path: path == "['w2']"
    operator = curvature.hessian(model, CROSS_ENTROPY, params, x, y, select=only)
    assert np.all(np.isfinite(columns(operator)))
    with pytest.raises(AssertionError, match="differentiated"):
        columns(curvature.hessian(model, CROSS_ENTROPY, params, x, y))


def test_fisher_of_tokens_sums_log_likelihoods_over_positions(x64):
    """It equals the GGN of the summed cross-entropy and of the half square."""
    random = np.random.default_rng(0)
    params, _, _ = problem(jnp.float64)
    x = jnp.asarray(random.normal(size=(5, 2, 3)))
    labels = jnp.asarray(random.integers(0, 3, (5, 2)))
    flattened = lambda p, x: jnp.reshape(tokens(p, x), (len(x), 6))
    entropy = lambda f, y: CROSS_ENTROPY(jnp.reshape(f, (-1, 2, 3)), y).sum(axis=-1)
    losses = {
        "softmax": (entropy, labels),
        "gaussian": (half_square, jnp.zeros((5, 6))),
    }
    for likelihood, (loss, y) in losses.items():
        fisher = curvature.fisher(tokens, params, x, likelihood=likelihood)
        expected = oracles.dense_ggn(flattened, loss, params, x, y)
        np.testing.assert_allclose(columns(fisher), expected, atol=1e-13)


def test_fisher_is_the_ggn_of_smoothed_labels_too_but_not_of_another_loss(x64):
    params, x, y = problem(jnp.float64)
    fisher = columns(curvature.fisher(mlp, params, x, likelihood="softmax"))
    smoothed = lambda f, y: optax.softmax_cross_entropy(
        f, optax.smooth_labels(jax.nn.one_hot(y, 3), 0.1)
    )
    ggn = columns(curvature.ggn(mlp, smoothed, params, x, y))
    np.testing.assert_allclose(ggn, fisher, atol=1e-14 * np.abs(fisher).max())
    focal = lambda f, y: CROSS_ENTROPY(f, y) ** 2
    ggn = columns(curvature.ggn(mlp, focal, params, x, y))
    assert np.abs(ggn - fisher).max() > 0.1 * np.abs(fisher).max()


@pytest.mark.parametrize("likelihood", ["softmax", "gaussian"])
def test_sampled_fisher_is_unbiased(likelihood):
    """Quadratic forms over 400 keys have the exact mean, within 4 standard errors."""
    params, x, _ = problem()
    random = np.random.default_rng(1)
    vectors = jax.tree.map(
        lambda p: jnp.asarray(random.normal(size=(3, *p.shape)), p.dtype), params
    )
    exact = curvature.fisher(mlp, params, x, likelihood=likelihood)
    form = lambda operator, v: optax.tree.vdot(v, operator.mv(v))
    expected = jax.vmap(lambda v: form(exact, v))(vectors)

    @jax.jit
    def sampled(index):
        operator = curvature.fisher(
            mlp,
            params,
            x,
            likelihood=likelihood,
            key=jax.random.fold_in(jax.random.key(0), index),
            num_samples=2,
        )
        return jax.vmap(lambda v: form(operator, v))(vectors)

    forms = jax.lax.map(sampled, jnp.arange(400))
    error = np.std(forms, axis=0) / 20
    assert np.all(error < 0.1 * expected)
    assert np.all(np.abs(np.mean(forms, axis=0) - expected) < 4 * error)


def test_more_samples_come_closer():
    """The variance falls with the number of samples: its root by 8 for 64."""
    params, x, _ = problem()
    exact = columns(curvature.fisher(mlp, params, x, likelihood="softmax"))

    def distance(num_samples):
        options = {"key": jax.random.key(0), "num_samples": num_samples}
        operator = curvature.fisher(mlp, params, x, likelihood="softmax", **options)
        return np.linalg.norm(columns(operator) - exact)

    assert 0.05 < distance(256) / distance(4) < 0.25


def test_ggn_spectrum_is_that_of_the_tangent_kernel(x64):
    """Under a squared error: c/n times, with c = 2 the curvature in the outputs."""
    params, x, _ = problem(jnp.float64, n=5)
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacrev(lambda w: mlp(unravel(w), x).ravel()))(flat)
    kernel = np.linalg.eigvalsh(jacobian @ jacobian.T)
    square = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1)
    ggn = columns(curvature.ggn(mlp, square, params, x, jnp.ones((5, 3))))
    top = np.linalg.eigvalsh(ggn)[-len(kernel) :]
    np.testing.assert_allclose(top, 2 / 5 * kernel, rtol=1e-5, atol=1e-14)


def test_closed_forms_of_a_linear_model(x64):
    """(2/n) X^T X, mean (diag p - p p^T) kron x x^T, and no residual part."""
    _, x, y = problem(jnp.float64)
    linear = lambda w, x: x @ w
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3)))
    square = lambda outputs, y: (outputs - y) ** 2
    for build in (curvature.hessian, curvature.ggn):
        ours = columns(build(linear, square, weights[:, 0], x, x[:, 0] ** 2))
        np.testing.assert_allclose(ours, 2 / 17 * x.T @ x, atol=1e-15)
    rows, logits = np.asarray(x), np.asarray(x @ weights)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = sum(
        np.kron(np.outer(row, row), np.diag(q) - np.outer(q, q)) / 17
        for row, q in zip(rows, p, strict=True)
    )
    arguments = (linear, CROSS_ENTROPY, weights, x, y)
    for operator in (
        curvature.hessian(*arguments),
        curvature.ggn(*arguments),
        curvature.fisher(linear, weights, x, likelihood="softmax"),
    ):
        np.testing.assert_allclose(columns(operator), expected, atol=1e-15)
    assert np.all(columns(curvature.residual_hessian(*arguments)) == 0)


def test_covariance_of_gradients_that_hardly_differ():
    """A mean gradient 1e4 times the deviations does not show in single precision."""
    random = np.random.default_rng(0)
    shifts = random.integers(-4, 5, size=(8, 3)) / 4.0
    x = jnp.asarray(2.0**14 + shifts, jnp.float32)
    model, loss = lambda w, x: x @ w, lambda outputs, y: outputs
    arguments = (model, loss, jnp.ones(3), x, jnp.zeros(8))
    ours = columns(curvature.gradient_covariance(*arguments))
    expected = np.cov(shifts.T, bias=True)
    # Slopes are rounded to 2^14 eps = 1/512.
    np.testing.assert_allclose(ours, expected, atol=1 / 128)


def test_no_example_has_a_gradient_of_its_own():
    """A product needs a small part of the memory of the gradients [n, p]."""
    params = {"w1": jnp.ones((50, 40)), "b1": jnp.ones(40), "w2": jnp.ones((40, 3))}
    x, y = jnp.ones((100, 50)), jnp.zeros(100, jnp.int32)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for build in (curvature.empirical_fisher, curvature.gradient_covariance):
        operator = build(mlp, CROSS_ENTROPY, params, x, y)
        compiled = jax.jit(lambda op, v: op.mv(v)).lower(operator, params).compile()
        used = compiled.memory_analysis().temp_size_in_bytes
        assert used < 0.2 * 4 * len(x) * size


def spread_problem(mesh, dtype):
    params, x, y = problem(dtype, n=48)
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    everywhere, rows = PartitionSpec(), PartitionSpec("data")
    return put(params, everywhere), put(x, rows), put(y, rows)


def test_sharded_products_are_one_all_reduce(x64, eight_devices):
    """Each device scans its own six examples; the sum crosses devices once, after."""
    arguments = spread_problem(eight_devices, jnp.float64)
    spread = operators(*arguments, batch_size=4)
    flat, _ = ravel_pytree(problem(jnp.float64, n=48)[0])
    for name, matrix in dense_in_double().items():
        operator, vector = spread[name], arguments[0]
        compiled = jax.jit(lambda op, v: op.mv(v)).lower(operator, vector).compile()
        assert collectives(compiled.as_text()) == {"after": 1, "inside": 0}, name
        ours = [np.ravel(leaf) for leaf in jax.tree.leaves(compiled(operator, vector))]
        np.testing.assert_allclose(np.concatenate(ours), matrix @ flat, atol=1e-12)


def collectives(program):
    """How many collectives a compiled program has outside and inside its loops.

    All of them have to be all-reduces.
    """
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    bodies = set(re.findall(r"body=%?([\w.\-]+)", program))
    counts, inside = {"after": 0, "inside": 0}, False
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            inside = opened[1] in bodies
        if found := re.search(rf" ({kinds})(?:-start)?\(", line):
            assert found[1] == "all-reduce"
            counts["inside" if inside else "after"] += 1
    return counts


def test_new_parameters_cost_no_new_trace_of_a_product():
    count = 0

    def counted(params, x):
        nonlocal count
        count += 1
        return mlp(params, x)

    def build(seed):
        params, x, y = problem(seed=seed)
        yield curvature.gradient_covariance(counted, CROSS_ENTROPY, params, x, y)
        key = jax.random.key(seed)
        yield curvature.fisher(counted, params, x, likelihood="softmax", key=key)

    def measure(seed):
        for operator in build(seed):
            linalg.top_eigenpairs(operator, key=jax.random.key(2), num_iterations=3)

    measure(0)
    first = count
    measure(1)
    # One checks the shapes of the losses, which traces the model once more.
    assert count == first + 1


def test_operators_inside_a_jitted_function():
    params, x, y = problem()
    sampling = {"likelihood": "gaussian", "num_samples": 2, "batch_size": 5}

    @jax.jit
    def measure(params, x, y, key):
        covariance = curvature.gradient_covariance(mlp, CROSS_ENTROPY, params, x, y)
        sampled = curvature.fisher(mlp, params, x, key=key, **sampling)
        return covariance.mv(params), sampled.mv(params)

    traced = measure(params, x, y, jax.random.key(0))
    covariance = curvature.gradient_covariance(mlp, CROSS_ENTROPY, params, x, y)
    sampled = curvature.fisher(mlp, params, x, key=jax.random.key(0), **sampling)
    for ours, operator in zip(traced, (covariance, sampled), strict=True):
        expected = ravel_pytree(operator.mv(params))[0]
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(ravel_pytree(ours)[0], expected, atol=tolerance)


def test_bad_input(user_land):
    params, x, y = problem()
    model = (mlp, CROSS_ENTROPY, params, x, y)
    fisher = lambda **options: curvature.fisher(
        **{"apply_fn": mlp, "params": params, "x": x, "likelihood": "softmax"} | options
    )
    integers = {**params, "w1": jnp.ones((3, 4), int)}
    builds = (
        curvature.residual_hessian,
        curvature.empirical_fisher,
        curvature.gradient_covariance,
    )
    for build in builds:
        with pytest.raises(ValueError, match=r"`params\['w1'\]` must be floating"):
            build(mlp, CROSS_ENTROPY, integers, x, y)
        with pytest.raises(ValueError, match="`y` must have as many examples"):
            build(mlp, CROSS_ENTROPY, params, x, y[:-1])
        with pytest.raises(ValueError, match="`batch_size` must be None"):
            build(*model, batch_size=0)
        with pytest.raises(ValueError, match=r"none of \[\"\['b1'\]\", .*w2"):
            build(*model, select=lambda path: "w3" in path)
        with pytest.raises(ValueError, match="`select` must be a function of a leaf"):
            build(*model, select="w1")
    operator = curvature.ggn(*model, select=lambda path: "w1" in path)
    with pytest.raises(ValueError, match=r"must have the structure .*\['w1'\]"):
        operator.mv(params)
    with pytest.raises(ValueError, match=r"`vector\['b1'\]` must have shape \(4,\)"):
        fisher().mv({**params, "b1": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"one of .*softmax.* but was 'poisson'"):
        fisher(likelihood="poisson")
    with pytest.raises(ValueError, match=r"one of .*softmax.* but was \['softmax'\]"):
        fisher(likelihood=["softmax"])
    with pytest.raises(ValueError, match="`apply_fn` must be a function"):
        fisher(apply_fn="mlp")
    with pytest.raises(ValueError, match=r"at least two classes .* shape \(17,\)"):
        fisher(apply_fn=lambda p, x: mlp(p, x)[:, 0])
    with pytest.raises(ValueError, match=r"at least two classes .* shape \(17, 1\)"):
        fisher(apply_fn=lambda p, x: mlp(p, x)[:, :1])
    with pytest.raises(ValueError, match=r"one floating-point array \[17, ...\]"):
        fisher(apply_fn=lambda p, x: (mlp(p, x),))
    with pytest.raises(ValueError, match=r"one floating-point array \[17, ...\]"):
        fisher(apply_fn=lambda p, x: mlp(p, x)[0])
    with pytest.raises(ValueError, match="`num_samples` must be left out"):
        fisher(num_samples=3)
    with pytest.raises(ValueError, match="`num_samples` must be an integer"):
        fisher(num_samples=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`key` must be one typed random key"):
        fisher(key=0)
    with pytest.raises(ValueError, match=r"`params\['w1'\]` must be floating"):
        fisher(params=integers)
