import re

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from jaxtheory import curvature, linalg


def new_key():
    """The same fresh key each time: one that was used may not be used again."""
    return jax.random.key(0)


CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def half_square(outputs, targets):
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def mlp(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]


def problem(seed=0, n=24, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 5)
    normal = lambda key, *shape: jax.random.normal(key, shape, dtype)
    params = {
        "w1": normal(keys[0], 4, 6) / 2,
        "b1": normal(keys[1], 6) / 2,
        "w2": normal(keys[2], 6, 3) / 2,
    }
    return params, normal(keys[3], n, 4), jax.random.randint(keys[4], (n,), 0, 3)


@pytest.mark.parametrize("batch_size", [None, 8, 7])
def test_hessian_and_ggn_equal_the_dense_ones(batch_size):
    """Also where the batch size leaves a ragged last chunk."""
    params, x, y = problem()
    arguments = (mlp, CROSS_ENTROPY, params, x, y)
    for build, oracle in (
        (curvature.hessian, oracles.dense_hessian),
        (curvature.ggn, oracles.dense_ggn),
    ):
        dense = oracle(*arguments)
        ours = oracles.materialise(build(*arguments, batch_size=batch_size))
        scale = np.abs(dense).max()
        np.testing.assert_allclose(ours, dense, atol=20 * 1.2e-7 * scale)


def test_double_precision_with_double_and_single_data(x64):
    params, x, y = problem(dtype=jnp.float64)
    arguments = (mlp, CROSS_ENTROPY, params, x, y)
    ours = oracles.materialise(curvature.hessian(*arguments, batch_size=7))
    np.testing.assert_allclose(ours, oracles.dense_hessian(*arguments), atol=1e-14)
    params, x, y = problem(dtype=jnp.float32)
    operator = curvature.hessian(mlp, CROSS_ENTROPY, params, x, y, batch_size=7)
    assert operator.mv(params)["w1"].dtype == jnp.float32


def test_linear_regression_closed_form():
    """The Hessian of the half square is X^T X / n, and so is the Gauss-Newton."""
    _, x, _ = problem()
    linear = lambda w, x: x @ w
    params, y = jnp.zeros((4, 1)), jnp.ones((24, 1))
    expected = np.asarray(x.T @ x) / 24
    for build in (curvature.hessian, curvature.ggn):
        ours = oracles.materialise(build(linear, half_square, params, x, y))
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_softmax_regression_closed_form():
    """mean_i (diag p - p p^T) kron x x^T for logits x W."""
    _, x, y = problem()
    weights = jax.random.normal(new_key(), (4, 3))
    linear = lambda w, x: x @ w
    ours = oracles.materialise(curvature.hessian(linear, CROSS_ENTROPY, weights, x, y))
    expected = 0.0
    for row in np.asarray(x, np.float64):
        p = np.exp(row @ np.asarray(weights))
        p = p / p.sum()
        expected = expected + np.kron(np.outer(row, row), np.diag(p) - np.outer(p, p))
    np.testing.assert_allclose(ours, expected / 24, atol=1e-6)


def test_operator_survives_transformations():
    params, x, y = problem()
    operator = curvature.hessian(mlp, CROSS_ENTROPY, params, x, y)
    expected = operator.mv(params)
    assert len(jax.tree.leaves(operator)) == 5
    for image in (
        jax.jit(lambda op, v: op.mv(v))(operator, params),
        jax.lax.scan(lambda op, _: (op, op.mv(params)), operator, None, length=1)[1],
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-6),
            image,
            expected,
        )


def test_sharpness_and_trace():
    params, x, y = problem()
    arguments = (mlp, CROSS_ENTROPY, params, x, y)
    dense = oracles.dense_hessian(*arguments)
    top = curvature.sharpness(*arguments, key=new_key(), batch_size=7)
    np.testing.assert_allclose(top, np.linalg.eigvalsh(dense)[-1], rtol=1e-5)
    estimate = linalg.trace(
        curvature.hessian(*arguments), key=new_key(), num_samples=64
    )
    assert abs(estimate.value - np.trace(dense)) < 4 * estimate.standard_error


def test_weight_decay_by_operator_algebra():
    """hessian + decay * identity is an operator like any other."""
    params, x, y = problem()
    operator = curvature.hessian(mlp, CROSS_ENTROPY, params, x, y)
    identity = lx.IdentityLinearOperator(operator.in_structure())
    top = linalg.top_eigenpairs(operator, key=new_key()).values[0]
    decayed = linalg.top_eigenpairs(operator + 0.5 * identity, key=new_key()).values[0]
    np.testing.assert_allclose(decayed, top + 0.5, rtol=1e-5)


def test_new_parameters_cost_no_new_trace():
    count = 0

    def counted(params, x):
        nonlocal count
        count += 1
        return mlp(params, x)

    def measure(seed):
        params, x, y = problem(seed)
        curvature.sharpness(counted, CROSS_ENTROPY, params, x, y, key=new_key())

    measure(0)
    first = count
    measure(1)
    # Building an operator checks the loss's shape, which traces the model once more.
    assert count == first + 1


@pytest.mark.parametrize("batch_size", [None, 4, 3])
def test_sharded_product_is_one_all_reduce(eight_devices, batch_size):
    """Each device scans its own shard; nothing else crosses devices."""
    params, x, y = problem(n=64)
    spread = NamedSharding(eight_devices, PartitionSpec("data"))
    everywhere = NamedSharding(eight_devices, PartitionSpec())
    operator = curvature.hessian(
        mlp,
        CROSS_ENTROPY,
        jax.device_put(params, everywhere),
        jax.device_put(x, spread),
        jax.device_put(y, spread),
        batch_size=batch_size,
    )
    vector = jax.device_put(params, everywhere)
    compiled = jax.jit(lambda op, v: op.mv(v)).lower(operator, vector).compile()
    program = compiled.as_text()
    collectives = re.findall(
        r"(all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)"
        r"(?:-start)?\(",
        program,
    )
    assert collectives == ["all-reduce"]
    expected = curvature.hessian(mlp, CROSS_ENTROPY, params, x, y).mv(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        compiled(operator, vector),
        expected,
    )


def test_batch_sharpness_is_the_mean_of_ratios():
    """The average over all batches of two, taken exactly, within its error.

    Inputs from small to large and residuals that grow with them, so that batches
    differ in curvature and the ratio of means, which weighs them by their squared
    gradients, is far away.
    """
    params, x, _ = problem(n=6)
    x = x * 2.0 ** jnp.arange(-4, 2)[:, None]
    y = mlp(params, x) + 2.0 ** jnp.arange(-3, 3)[:, None]
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def products(rows):
        mean_loss = lambda w: jnp.mean(half_square(mlp(unravel(w), x[rows]), y[rows]))
        gradient, hessian = jax.grad(mean_loss)(flat), jax.hessian(mean_loss)(flat)
        return gradient @ hessian @ gradient, gradient @ gradient

    pairs = [products(jnp.array([i, j])) for i in range(6) for j in range(i)]
    curved, squares = np.array(pairs, np.float64).T
    expected, other = np.mean(curved / squares), np.mean(curved) / np.mean(squares)
    estimate = curvature.batch_sharpness(
        mlp, half_square, params, x, y, batch_size=2, num_batches=300, key=new_key()
    )
    assert estimate.standard_error < 0.1 * expected
    assert abs(other - expected) > 10 * estimate.standard_error
    assert abs(estimate.value - expected) < 4 * estimate.standard_error
    assert estimate.num_samples == 300


@pytest.mark.parametrize("scale", [1e-22, 1e25])
def test_batch_sharpness_of_gradients_whose_squares_leave_single_precision(scale):
    """Half squares w^2 a^2 / 2 with a^2 = 1 and 9: gradients w a^2, curvatures a^2."""
    a, weight = jnp.array([1.0, 3.0]), jnp.array(scale)
    estimate = curvature.batch_sharpness(
        lambda w, x: w * x,
        lambda outputs, y: (outputs - y) ** 2 / 2,
        weight,
        a,
        jnp.zeros(2),
        batch_size=2,
        num_batches=2,
        key=new_key(),
    )
    np.testing.assert_allclose(estimate.value, 5.0, rtol=1e-6)


def test_batches_without_a_gradient_are_left_out():
    """Of batches of one, those of the first example have no residual."""

    def measure(x, y):
        return curvature.batch_sharpness(
            lambda w, x: w * x,
            lambda outputs, y: (outputs - y) ** 2 / 2,
            jnp.array(1.0),
            x,
            y,
            batch_size=1,
            num_batches=20,
            key=new_key(),
        )

    x = jnp.array([1.0, 2.0])
    some = measure(x, jnp.array([1.0, 0.0]))
    assert 2 <= some.num_samples < 20
    assert some.value == 4
    assert some.standard_error == 0
    none = measure(x, x)
    assert none.num_samples == 0
    assert np.isnan(none.value)
    assert np.isnan(none.standard_error)
    broken = measure(x.at[0].set(jnp.nan), jnp.array([1.0, 0.0]))
    assert broken.num_samples == 20
    assert np.isnan(broken.value)


def test_preconditioned_sharpness_of_adam():
    params, x, y = problem()
    mean_loss = lambda p: jnp.mean(CROSS_ENTROPY(mlp(p, x), y))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e9), optax.adam(0.01, b1=0.8, b2=0.9, eps=1e-3)
    )
    state, gradients = optimizer.init(params), []
    for _ in range(3):
        gradients.append(jax.grad(mean_loss)(params))
        updates, state = optimizer.update(gradients[-1], state, params)
        params = optax.apply_updates(params, updates)
    diagonal = curvature.preconditioner(state, b1=0.8, b2=0.9, eps=1e-3)
    moment = sum(
        0.1 * 0.9 ** (2 - t) * np.asarray(g["w1"]) ** 2 for t, g in enumerate(gradients)
    )
    expected = (1 - 0.8**3) * (np.sqrt(moment / (1 - 0.9**3)) + 1e-3)
    np.testing.assert_allclose(diagonal["w1"], expected, rtol=1e-5)

    operator = curvature.hessian(mlp, CROSS_ENTROPY, params, x, y)
    flat = np.concatenate([np.ravel(d) for d in jax.tree.leaves(diagonal)])
    dense = oracles.dense_hessian(mlp, CROSS_ENTROPY, params, x, y)
    dense = dense / np.sqrt(np.outer(flat, flat))
    scaled = curvature.preconditioned(operator, diagonal)
    top = linalg.top_eigenpairs(scaled, key=new_key()).values[0]
    np.testing.assert_allclose(top, np.linalg.eigvalsh(dense)[-1], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "momentum", "optimizer"),
    [
        ("gradient_descent", 0.0, optax.sgd(0.1)),
        ("heavy_ball", 0.9, optax.sgd(0.1, momentum=0.9)),
        ("nesterov", 0.9, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ("adam", 0.9, optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))),
    ],
)
def test_thresholds_bracket_divergence_of_optax(method, momentum, optimizer):
    """On a quadratic 1 % below the threshold shrinks, 1 % above grows."""
    edge = curvature.stability_threshold(method, learning_rate=0.1, momentum=momentum)

    def run(curvature_):
        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(curvature_ * w, state, w)
            return (w + updates, state), None

        w = jnp.ones(())
        (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), None, length=400)
        return abs(w)

    assert run(0.99 * edge.full_batch) < 1e-2
    assert run(1.01 * edge.full_batch) > 1e2


@pytest.mark.parametrize(
    ("b1", "expected", "tolerance"), [(0.0, 1.0, 1e-6), (0.9, 0.951, 0.012)]
)
def test_adam_settles_at_the_threshold(x64, b1, expected, tolerance):
    """Real Adam on a quadratic brings its own preconditioned sharpness to the edge.

    Without momentum onto it; with momentum just below, because the preconditioner
    moves within the averaging time. There the motion is chaotic: medians of single
    runs spread by .009, the mean over 16 bases by a quarter of that, and the tolerance
    is 4 standard errors of the difference of two such means.

    Curvatures 1, 3, 10, 50 in random bases: along the axes Adam's coordinates would
    not know of each other.
    """
    bases = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 4, 4)))[0]
    hessians = jnp.asarray(bases * [1, 3, 10, 50] @ bases.swapaxes(1, 2))
    optimizer = optax.adam(1e-2, b1=b1, b2=0.99, eps=1e-12)

    def late_sharpness(hessian):
        hessian = lx.MatrixLinearOperator(hessian, lx.symmetric_tag)

        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(hessian.mv(w), state, w)
            diagonal = curvature.preconditioner(state, b1=b1, b2=0.99, eps=1e-12)
            scaled = curvature.preconditioned(hessian, diagonal).as_matrix()
            return (w + updates, state), jnp.linalg.eigvalsh(scaled)[-1]

        start = jnp.ones(4), optimizer.init(jnp.ones(4))
        _, sharpness = jax.lax.scan(step, start, None, length=10_000)
        return jnp.median(sharpness[5_000:])

    edge = curvature.stability_threshold("adam", learning_rate=1e-2, momentum=b1)
    ratios = jax.jit(jax.vmap(late_sharpness))(hessians) / edge.full_batch
    assert abs(np.mean(ratios) - expected) < tolerance


def test_bad_input(user_land):
    params, x, y = problem()
    build = lambda **kwargs: curvature.hessian(
        **{
            "apply_fn": mlp,
            "loss_fn": CROSS_ENTROPY,
            "params": params,
            "x": x,
            "y": y,
            **kwargs,
        }
    )
    with pytest.raises(ValueError, match=r"`y` must have as many examples .* as `x`"):
        build(y=y[:-1])
    with pytest.raises(ValueError, match=r"`params\['w1'\]` must be floating-point"):
        build(params={**params, "w1": jnp.ones((4, 6), int)})
    with pytest.raises(ValueError, match="one loss per example"):
        build(loss_fn=lambda outputs, y: jnp.mean(CROSS_ENTROPY(outputs, y)))
    # Summed over the wrong axis, a broadcast has the right shape again.
    summed = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1)
    with pytest.raises(ValueError, match="compare each output with its own target"):
        build(
            apply_fn=lambda p, x: mlp(p, x)[:, :1], loss_fn=summed, y=jnp.ones(len(x))
        )
    with pytest.raises(ValueError, match="`batch_size` must be None"):
        build(batch_size=0)
    with pytest.raises(ValueError, match="must have the structure"):
        build().mv(params["w1"])
    sample = lambda **kwargs: curvature.batch_sharpness(
        **{
            "apply_fn": mlp,
            "loss_fn": CROSS_ENTROPY,
            "params": params,
            "x": x,
            "y": y,
            "batch_size": 2,
            "num_batches": 2,
            "key": new_key(),
            **kwargs,
        }
    )
    with pytest.raises(ValueError, match="`batch_size` must be between 1 and the 24"):
        sample(batch_size=25)
    for batch_size in (0, 1.5, None, True):
        with pytest.raises(ValueError, match="`batch_size` must be an integer of at"):
            sample(batch_size=batch_size)
    for num_batches in (1, 2.5, True):
        with pytest.raises(ValueError, match="`num_batches` must be an integer of at"):
            sample(num_batches=num_batches)
    elementwise = lambda outputs, y: (outputs - jax.nn.one_hot(y, 3)) ** 2
    with pytest.raises(ValueError, match=r"one loss per example.*\(24, 3\)"):
        sample(loss_fn=elementwise)
    with pytest.raises(ValueError, match=r"`params\['w1'\]` must be floating-point"):
        sample(params={**params, "w1": jnp.ones((4, 6), int)})
    square = lx.MatrixLinearOperator(jnp.eye(3))
    with pytest.raises(ValueError, match=r"`diagonal` must have shape \(3,\)"):
        curvature.preconditioned(
            lx.TaggedLinearOperator(square, lx.symmetric_tag), jnp.ones(2)
        )
    with pytest.raises(ValueError, match="`operator` must be symmetric"):
        curvature.preconditioned(lx.MatrixLinearOperator(jnp.ones((2, 2))), jnp.ones(2))
    with pytest.raises(ValueError, match="must map a space to itself"):
        curvature.preconditioned(lx.MatrixLinearOperator(jnp.ones((3, 2))), jnp.ones(2))


def test_outputs_that_broadcast_against_targets_are_refused(user_land):
    """Outputs [n, 1] and targets [n] make losses [n, n]: n times too sharp a loss."""
    x, y = jnp.ones((4, 2)), jnp.arange(4.0)
    arguments = (
        lambda w, x: x @ w,
        lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1),
        jnp.ones((2, 1)),
        x,
        y,
    )
    for call in (
        lambda: curvature.hessian(*arguments),
        lambda: curvature.ggn(*arguments),
        lambda: curvature.batch_sharpness(
            *arguments, batch_size=2, num_batches=2, key=new_key()
        ),
    ):
        with pytest.raises(ValueError, match=r"its own target.*`y\[:, None\]`"):
            call()


@pytest.mark.parametrize(
    ("method", "learning_rate", "momentum", "message"),
    [
        ("lion", 0.1, 0.9, "have no threshold"),
        ("adam", 0.0, 0.9, "`learning_rate` must be positive and finite, but was 0.0"),
        ("adam", np.inf, 0.9, "`learning_rate` must be positive and finite"),
        ("adam", None, 0.9, "`learning_rate` must be positive and finite"),
        ("adam", jnp.ones(2), 0.9, r"`learning_rate` .* array of shape \(2,\)"),
        ("adam", 0.1, None, r"`momentum` must be in \[0, 1\) for 'adam', but was None"),
        ("heavy_ball", 0.1, 1.0, r"`momentum` must be in \[0, 1\) for 'heavy_ball'"),
        ("gradient_descent", 0.1, 0.9, "`momentum` must be left out .* 'heavy_ball'"),
    ],
)
def test_bad_thresholds(user_land, method, learning_rate, momentum, message):
    with pytest.raises(ValueError, match=message):
        curvature.stability_threshold(
            method, learning_rate=learning_rate, momentum=momentum
        )


def test_a_threshold_of_traced_numbers(user_land):
    edge = lambda eta, b: curvature.stability_threshold(
        "adam", learning_rate=eta, momentum=b
    )
    np.testing.assert_allclose(jax.jit(edge)(0.1, 0.9).full_batch, 380, rtol=1e-6)


def test_nan_in_the_data_is_seen_in_the_result():
    params, x, y = problem()
    operator = curvature.hessian(mlp, CROSS_ENTROPY, params, x.at[0].set(jnp.nan), y)
    top = linalg.top_eigenpairs(operator, key=new_key())
    assert not np.any(top.converged)
