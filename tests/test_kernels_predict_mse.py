"""Closed forms of training under squared error against optax, SciPy and NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from jaxtheory.kernels import predict

N, M, K, P = 6, 3, 2, 20


def half_square(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def mean_square(outputs, targets):
    return jnp.mean((outputs - targets) ** 2, axis=1)


def square(outputs, targets):
    return optax.squared_error(outputs, targets).sum(axis=1)


class Linear:
    """A linear model of outputs that share parameters: Jacobians [n, k, p]."""

    def __init__(self, num_params=P, duplicate=False, dtype=np.float64):
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape).astype(dtype)
        self.train, self.test = draw(N, K, num_params), draw(M, K, num_params)
        if duplicate:
            self.train[1] = self.train[0]
        self.start, self.targets = draw(num_params), draw(N, K)

    def arguments(self):
        """Kernels, targets and initial outputs as the predictions take them."""
        kernel = np.einsum("ikp,jlp->ijkl", self.train, self.train)
        kernel_test = np.einsum("ikp,jlp->ijkl", self.test, self.train)
        data = (kernel, self.targets, kernel_test)
        initial = {
            "initial_outputs": jnp.asarray(self.train @ self.start),
            "initial_outputs_test": jnp.asarray(self.test @ self.start),
        }
        return tuple(map(jnp.asarray, data)), initial

    def descend(self, loss_fn, optimizer, num_steps):
        """Train the parameters themselves."""
        features, targets = jnp.asarray(self.train), jnp.asarray(self.targets)
        loss = lambda w: jnp.mean(loss_fn(features @ w, targets))

        def step(_, carry):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w), state)
            return w + updates, state

        start = jnp.asarray(self.start)
        run = jax.jit(lambda s: jax.lax.fori_loop(0, num_steps, step, s))
        return np.asarray(run((start, optimizer.init(start)))[0])

    def flow(self, curvature, time):
        """Parameters on the flow, by the exponential of the affine field's matrix."""
        features = self.train.reshape(N * K, -1)
        field = np.zeros((features.shape[1] + 1,) * 2)
        field[:-1, :-1] = -curvature / N * features.T @ features
        field[:-1, -1] = curvature / N * features.T @ self.targets.ravel()
        return (scipy.linalg.expm(field * time) @ np.append(self.start, 1))[:-1]


def assert_outputs(found, model, params, atol):
    """Outputs and the coefficients' parameters are those of trained parameters."""
    np.testing.assert_allclose(found.train, model.train @ params, rtol=0, atol=atol)
    np.testing.assert_allclose(found.test, model.test @ params, rtol=0, atol=atol)
    moved = np.einsum("ikp,ik->p", model.train, found.coefficients)
    np.testing.assert_allclose(model.start + moved, params, rtol=0, atol=atol)
    assert int(found.num_nonfinite) == 0
    assert np.all(found.reached)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "rate"),
    [(0.0, False, 0.9), (0.9, False, 0.3), (0.9, False, 0.001), (0.8, True, 0.6)],
)
def test_descent_is_that_of_optax(x64, momentum, nesterov, rate):
    model = Linear()
    data, initial = model.arguments()
    options = {"momentum": momentum, "nesterov": nesterov}
    edge = predict.critical_learning_rate(half_square, *data[:2], **options)
    options["learning_rate"] = rate * float(edge)
    found = predict.gradient_descent_mse(
        half_square, *data, num_steps=300, **options, **initial
    )
    expected = model.descend(half_square, optax.sgd(**options), 300)
    assert_outputs(found, model, expected, 3e-14)


def test_few_steps_are_exact(x64):
    model = Linear()
    data, initial = model.arguments()
    options = {"learning_rate": 0.01, "momentum": 0.5}
    steps = jnp.array([3, 0, 1])
    found = predict.gradient_descent_mse(
        square, *data, num_steps=steps, **options, **initial
    )
    assert found.train.shape == (3, N, K)
    assert found.test.shape == (3, M, K)
    for index, num in enumerate([3, 0, 1]):
        expected = model.descend(square, optax.sgd(**options), num)
        one = found._replace(
            train=found.train[index],
            test=found.test[index],
            coefficients=found.coefficients[index],
        )
        assert_outputs(one, model, expected, 2e-14)


@pytest.mark.parametrize(
    ("loss_fn", "curvature"), [(half_square, 1), (mean_square, 2 / K), (square, 2)]
)
def test_flow_reads_the_curvature(x64, loss_fn, curvature):
    model = Linear()
    data, initial = model.arguments()
    found = predict.gradient_flow_mse(loss_fn, *data, time=1.7, **initial)
    assert_outputs(found, model, model.flow(curvature, 1.7), 1e-13)


def test_flow_at_infinity_interpolates_with_least_motion(x64):
    model = Linear()
    data, initial = model.arguments()
    found = predict.gradient_flow_mse(half_square, *data, time=jnp.inf, **initial)
    features = model.train.reshape(N * K, P)
    residual = (model.targets - model.train @ model.start).ravel()
    expected = model.start + np.linalg.pinv(features) @ residual
    assert_outputs(found, model, expected, 1e-13)
    np.testing.assert_allclose(found.train, model.targets, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("num_params", "duplicate"), [(P, True), (5, False)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_singular_kernels_are_exact(num_params, duplicate, dtype):
    model = Linear(num_params, duplicate)
    dropped = K if duplicate else N * K - num_params
    with jax.enable_x64(dtype == jnp.float64):
        data, initial = model.arguments()
        times = jnp.array([0.0, 2.0, 300.0, 1e30, jnp.inf], dtype)
        found = predict.gradient_flow_mse(half_square, *data, time=times, **initial)
        steps = predict.gradient_descent_mse(
            half_square, *data, learning_rate=0.01, num_steps=500, **initial
        )
        descended = model.descend(half_square, optax.sgd(0.01), 500)
    eps = float(jnp.finfo(dtype).eps)
    features = model.train.reshape(N * K, -1)
    limit = model.start + np.linalg.pinv(features) @ (
        model.targets.ravel() - features @ model.start
    )
    expected = [model.start, model.flow(1, 2.0), model.flow(1, 300.0), limit, limit]
    for index, params in enumerate(expected):
        # Ten roundings of the kernel, grown with time; at last its null space is
        # forgotten.
        grown = 3e3 * np.linalg.norm(features, 2) ** 2 / N if index == 2 else 0
        close = {"rtol": 0, "atol": (1e3 + grown) * eps}
        np.testing.assert_allclose(found.train[index], model.train @ params, **close)
        np.testing.assert_allclose(found.test[index], model.test @ params, **close)
    np.testing.assert_allclose(
        steps.test, model.test @ descended, rtol=0, atol=1e3 * eps
    )
    assert int(found.num_dropped) == int(steps.num_dropped) == dropped
    assert int(found.num_nonfinite) == 0


def test_shared_kernel_is_the_full_one_of_independent_outputs(x64):
    rng = np.random.default_rng(1)
    x, z = jnp.asarray(rng.normal(size=(N, 4))), jnp.asarray(rng.normal(size=(M, 4)))
    y = jnp.asarray(rng.normal(size=(N, K)))
    full = lambda a: jnp.einsum("ij,kl->ijkl", a, jnp.eye(K))
    shared = predict.gradient_flow_mse(half_square, x @ x.T, y, z @ x.T, time=0.7)
    found = predict.gradient_flow_mse(
        half_square, full(x @ x.T), y, full(z @ x.T), time=0.7
    )
    np.testing.assert_allclose(found.train, shared.train, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.test, shared.test, rtol=0, atol=1e-13)
    alone = predict.gradient_flow_mse(half_square, x @ x.T, y, time=0.7)
    np.testing.assert_array_equal(alone.train, shared.train)
    assert alone.test is None


@pytest.mark.parametrize(("momentum", "nesterov"), [(0, False), (0.9, False), (0.9, 1)])
def test_critical_learning_rate_is_the_edge(x64, momentum, nesterov):
    model = Linear()
    (kernel, targets, _), _ = model.arguments()
    options = {"momentum": momentum, "nesterov": bool(nesterov)}
    edge = predict.critical_learning_rate(mean_square, kernel, targets, **options)
    matrix = np.asarray(kernel).transpose(0, 2, 1, 3).reshape(N * K, N * K)
    widening = 2 * (1 + momentum) / (1 + 2 * momentum * nesterov)
    expected = widening * N * K / 2 / np.linalg.eigvalsh(matrix)[-1]
    np.testing.assert_allclose(edge, expected, rtol=1e-12)

    def error(relative):
        found = predict.gradient_descent_mse(
            mean_square,
            kernel,
            targets,
            learning_rate=relative * edge,
            num_steps=200_000,
            **options,
        )
        return float(jnp.max(jnp.abs(found.train - targets)))

    assert error(0.99) < 3e-14
    assert not error(1.01) < 1e10


def test_divergence_and_nonfinite_inputs_are_counted():
    data, initial = Linear(dtype=np.float32).arguments()
    found = predict.gradient_descent_mse(
        half_square, *data, learning_rate=100.0, num_steps=10_000, **initial
    )
    assert found.num_nonfinite > 0
    kernel = data[0].at[0, 0, 0, 0].set(jnp.nan)
    found = predict.gradient_flow_mse(half_square, kernel, *data[1:], time=1.0)
    assert found.num_nonfinite == (N + M) * K
    assert np.isnan(predict.critical_learning_rate(half_square, kernel, data[1]))


def test_under_transformations():
    data, initial = Linear(dtype=np.float32).arguments()
    flow = lambda time: (
        predict.gradient_flow_mse(half_square, *data, time=time, **initial).test
    )
    times = jnp.array([0.1, 3.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(flow))(times), flow(times), rtol=1e-5)
    slope = jax.jacrev(flow)(1.0)
    step = 1e-2
    np.testing.assert_allclose(
        slope, (flow(1 + step) - flow(1 - step)) / (2 * step), rtol=1e-2, atol=1e-3
    )

    def descend(rate):
        return predict.gradient_descent_mse(
            half_square, *data, learning_rate=rate, num_steps=7, momentum=0.5
        ).test

    slope = jax.jacrev(descend)(0.02)
    difference = (descend(0.021) - descend(0.019)) / 0.002
    np.testing.assert_allclose(slope, difference, rtol=1e-2, atol=2e-2)


def test_smoothed_labels_of_many_outputs_are_not_quadratic():
    """Errors of a few percent of a target, beside distances of up to 1000."""
    smooth = lambda f, y: half_square(f, 0.98 * y + 0.002)
    with pytest.raises(ValueError, match="`loss_fn` must be quadratic"):
        predict.critical_learning_rate(smooth, jnp.eye(3), jnp.ones((3, 10)))


def test_derivatives_in_the_learning_rate_above_the_critical_one(x64):
    """Outputs ``1 - (1 - 3 r / 2)^3`` of two examples, finite and growing."""
    kernel, y = 3 * jnp.eye(2), jnp.ones((2, 1))
    options = {"num_steps": 3}
    train = lambda rate: predict.gradient_descent_mse(
        half_square, kernel, y, learning_rate=rate, **options
    ).train[0, 0]
    for rate in (0.5, 2.1):
        expected = 3 * 1.5 * (1 - 1.5 * rate) ** 2
        np.testing.assert_allclose(jax.grad(train)(rate), expected, rtol=1e-12)


def test_one_trace_serves_all_values():
    traces, counts = [], []

    def loss_fn(outputs, targets):
        traces.append(outputs.shape)
        return half_square(outputs, targets)

    data, _ = Linear(dtype=np.float32).arguments()
    for rate, steps in ((0.1, 3), (0.2, 5)):
        predict.gradient_descent_mse(
            loss_fn, *data, learning_rate=rate, num_steps=steps
        )
        counts.append(len(traces))
    assert 0 < counts[0] == counts[1]


def huber(outputs, targets):
    return optax.huber_loss(outputs, targets, delta=5.0).sum(axis=1)


def weighted(outputs, targets):
    return jnp.sum(jnp.arange(1.0, K + 1)[None] * (outputs - targets) ** 2, axis=1)


@pytest.mark.parametrize(
    "loss_fn",
    [
        huber,
        weighted,
        optax.softmax_cross_entropy,
        lambda f, y: jnp.sum((f - y - 1) ** 2, axis=1),
        lambda f, y: -half_square(f, y),
    ],
    ids=["huber", "weighted", "cross-entropy", "shifted", "concave"],
)
def test_losses_without_closed_form(loss_fn):
    data, _ = Linear(dtype=np.float32).arguments()
    with pytest.raises(
        ValueError, match=r"`loss_fn` must be quadratic.*`gradient_flow"
    ):
        predict.gradient_flow_mse(loss_fn, *data, time=1.0)


ONES = jnp.ones
WRONG_INPUTS = {
    "diagonal": ({"kernel": ONES((3, 3, 2))}, r"`kernel` must be .*jax\.vmap"),
    "not square": ({"kernel": ONES((3, 4))}, r"`kernel` must be .* shape \(3, 4\)"),
    "outputs": ({"kernel": ONES((3, 3, 4, 4))}, r"`kernel` must be .* with k = 2"),
    "targets": ({"targets": ONES(3)}, r"`targets` must be \[n, k\]"),
    "examples": ({"targets": ONES((2, 2))}, r"`targets` must have as many examples"),
    "transposed": (
        {"kernel_test": ONES((3, 4))},
        r"`kernel_test` must be the kernel of \(x_test, x_train\).*\(3, 4\)",
    ),
    "kinds": ({"kernel_test": ONES((4, 3, 2, 2))}, r"like `kernel`"),
    "initial": ({"initial_outputs": ONES((3, 1))}, r"`initial_outputs` must be"),
    "half": ({"initial_outputs": ONES((3, 2))}, r"must both be given"),
    "test": (
        {"initial_outputs": ONES((3, 2)), "initial_outputs_test": ONES((3, 2))},
        r"`initial_outputs_test` must be \[m, k\], \(4, 2\)",
    ),
    "without": (
        {"kernel_test": None, "initial_outputs_test": ONES((4, 2))},
        r"without `kernel_test`",
    ),
    "past": ({"time": -1.0}, r"`time` must be at least 0"),
    "nan": ({"time": float("nan")}, r"`time` must be at least 0"),
    "table": ({"time": ONES((2, 2))}, r"`time` must be a number or a vector"),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    arguments = {
        "kernel": jnp.eye(3),
        "targets": ONES((3, 2)),
        "kernel_test": ONES((4, 3)),
        "time": 1.0,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        predict.gradient_flow_mse(half_square, **arguments)


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"`learning_rate` must be positive"),
        ({"num_steps": -1}, r"`num_steps` must be at least 0"),
        ({"num_steps": 1.5}, r"`num_steps` must be an integer"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\)"),
    ],
)
def test_bad_descent(changes, message):
    options = {"learning_rate": 0.1, "num_steps": 3, **changes}
    with pytest.raises(ValueError, match=message):
        predict.gradient_descent_mse(half_square, jnp.eye(3), ONES((3, 2)), **options)


def test_too_many_outputs_for_the_eigensolver():
    shapes = [(200, 200, 200, 200), (200, 200)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    run = lambda *arrays: predict.gradient_flow_mse(half_square, *arrays, time=1.0)
    with pytest.raises(ValueError, match=r"fewer than 32767 .* but has 40000"):
        jax.eval_shape(run, *arrays)


def test_one_kernel_per_output_by_vmap():
    kernels = jnp.stack([jnp.eye(3), 2 * jnp.eye(3)], axis=2)
    targets = jnp.ones((3, 2))
    run = lambda kernel, y: predict.gradient_flow_mse(
        half_square, kernel, y[:, None], time=3.0
    ).train[:, 0]
    found = jax.vmap(run, in_axes=(2, 1), out_axes=1)(kernels, targets)
    expected = np.broadcast_to(1 - np.exp([[-1.0, -2.0]]), (3, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
