"""Training of linear models under any loss against optax, SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.special

from jaxtheory.kernels import predict

N, M, K, P = 5, 3, 3, 8
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def half_square(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def problem(dtype=np.float64):
    """A linear model whose outputs share parameters: features, start, labels."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(N, K, P)), rng.normal(size=(M, K, P))
    start, labels = rng.normal(size=P), rng.integers(K, size=N)
    return train.astype(dtype), test.astype(dtype), start.astype(dtype), labels


def arguments(train, test, start):
    """Kernels and initial outputs."""
    full = lambda a, b: jnp.asarray(np.einsum("ikp,jlp->ijkl", a, b))
    initial = {
        "initial_outputs": jnp.asarray(train @ start),
        "initial_outputs_test": jnp.asarray(test @ start),
    }
    return full(train, train), full(test, train), initial


def flow(train, start, labels, times):
    """Parameters on the flow under cross-entropy, by SciPy."""

    def field(_, w):
        gradient = scipy.special.softmax(train @ w, axis=1)
        gradient[np.arange(N), labels] -= 1
        return -np.einsum("nkp,nk->p", train, gradient) / N

    options = {"rtol": 1e-12, "atol": 1e-13, "method": "DOP853"}
    solved = scipy.integrate.solve_ivp(
        field, (0, max(times)), start, t_eval=times, **options
    )
    return solved.y.T


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 3e-5), (jnp.float64, 1e-8)])
def test_flow_under_cross_entropy(dtype, atol):
    train, test, start, labels = problem(np.dtype(dtype))
    with jax.enable_x64(dtype == jnp.float64):
        kernel, kernel_test, initial = arguments(train, test, start)
        found = predict.gradient_flow(
            CROSS_ENTROPY,
            kernel,
            jnp.asarray(labels),
            kernel_test,
            time=jnp.array([20.0, 0.0, 1.5], dtype),
            tolerance=1e-6 if dtype == jnp.float32 else 1e-10,
            **initial,
        )
    late, first, middle = flow(train, start, labels, [0.0, 1.5, 20.0])[[2, 0, 1]]
    for index, params in enumerate((late, first, middle)):
        close = {"rtol": 0, "atol": atol}
        np.testing.assert_allclose(found.train[index], train @ params, **close)
        np.testing.assert_allclose(found.test[index], test @ params, **close)
        moved = np.einsum("ikp,ik->p", train, found.coefficients[index])
        np.testing.assert_allclose(start + moved, params, **close)
    assert np.all(found.reached)
    assert int(found.num_nonfinite) == 0


def test_flow_under_squared_error_is_the_closed_form(x64):
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(N, 20)) * np.arange(1, 21) ** -1.0)
    kernel, targets = features @ features.T, jnp.asarray(rng.normal(size=(N, 2)))
    time = jnp.array([0.5, 50.0])
    expected = predict.gradient_flow_mse(half_square, kernel, targets, time=time)
    found = predict.gradient_flow(
        half_square,
        kernel,
        targets,
        time=time,
        initial_outputs=jnp.zeros((N, 2)),
        tolerance=1e-9,
    )
    np.testing.assert_allclose(found.train, expected.train, rtol=0, atol=1e-7)
    assert found.test is None


def test_says_when_it_runs_out_of_steps():
    stiff = jnp.diag(jnp.array([1e6, 1.0]))
    found = predict.gradient_flow(
        half_square,
        stiff,
        jnp.ones((2, 1)),
        time=jnp.array([1e-8, 100.0]),
        initial_outputs=jnp.zeros((2, 1)),
        max_steps=50,
    )
    np.testing.assert_array_equal(found.reached, [True, False])
    assert found.num_nonfinite == 0


def test_stationary_and_nonfinite_starts_end_at_once():
    start = {"initial_outputs": jnp.ones((2, 1))}
    still = predict.gradient_flow(
        half_square, jnp.eye(2), jnp.ones((2, 1)), time=1e3, **start
    )
    assert still.reached
    np.testing.assert_array_equal(still.train, 1)
    kernel = jnp.eye(2).at[0, 0].set(jnp.nan)
    lost = predict.gradient_flow(
        half_square, kernel, jnp.zeros((2, 1)), time=1e3, max_steps=10**9, **start
    )
    assert not lost.reached
    assert lost.num_nonfinite > 0


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)]
)
def test_descent_is_that_of_optax(x64, momentum, nesterov):
    train, test, start, labels = problem()
    kernel, kernel_test, initial = arguments(train, test, start)
    options = {"learning_rate": 0.3, "momentum": momentum, "nesterov": nesterov}
    found = predict.gradient_descent(
        CROSS_ENTROPY,
        kernel,
        jnp.asarray(labels),
        kernel_test,
        num_steps=jnp.array([40, 1]),
        **initial,
        **options,
    )
    optimizer = optax.sgd(**options)
    loss = lambda w: jnp.mean(CROSS_ENTROPY(jnp.asarray(train) @ w, labels))

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(loss)(w), state)
        return (w + updates, state), w + updates

    begin = (jnp.asarray(start), optimizer.init(jnp.asarray(start)))
    path = np.asarray(jax.lax.scan(step, begin, length=40)[1])
    for index, params in enumerate((path[39], path[0])):
        close = {"rtol": 0, "atol": 1e-13}
        np.testing.assert_allclose(found.train[index], train @ params, **close)
        np.testing.assert_allclose(found.test[index], test @ params, **close)
    assert np.all(found.reached)


def test_descent_under_squared_error_is_the_closed_form(x64):
    train, test, start, _ = problem()
    kernel, kernel_test, initial = arguments(train, test, start)
    options = {"learning_rate": 0.05, "num_steps": 100, "momentum": 0.8}
    data = (kernel, jnp.ones((N, K)), kernel_test)
    found = predict.gradient_descent(half_square, *data, **options, **initial)
    expected = predict.gradient_descent_mse(half_square, *data, **options, **initial)
    np.testing.assert_allclose(found.test, expected.test, rtol=0, atol=1e-13)
    assert found.train.shape == (N, K)


def test_forward_derivatives(x64):
    rng = np.random.default_rng(2)
    features, targets = jnp.asarray(rng.normal(size=(N, 4))), jnp.ones((N, 1))
    start = {"initial_outputs": jnp.zeros((N, 1))}

    def run(scale, time):
        kernel = scale * features @ features.T
        out = predict.gradient_flow(
            half_square, kernel, targets, time=time, tolerance=1e-10, **start
        )
        closed = predict.gradient_flow_mse(half_square, kernel, targets, time=time)
        return out.train, closed.train

    # Scaling the kernel is scaling time.
    by_scale = jax.jvp(lambda s: run(s, 0.7)[0], (1.3,), (1.0,))[1]
    by_time, closed = jax.jvp(lambda t: run(1.3, t), (0.7,), (1.0,))[1]
    np.testing.assert_allclose(by_time, closed, rtol=0, atol=1e-7)
    np.testing.assert_allclose(by_scale * 1.3, closed * 0.7, rtol=0, atol=1e-7)


def test_one_trace_serves_all_values():
    traces = []

    def loss_fn(outputs, targets):
        traces.append(outputs.shape)
        return half_square(outputs, targets)

    data, start = (jnp.eye(2), jnp.ones((2, 1))), jnp.zeros((2, 1))

    def run(time, steps):
        predict.gradient_flow(loss_fn, *data, time=time, initial_outputs=start)
        options = {"learning_rate": 0.1, "num_steps": steps}
        predict.gradient_descent(loss_fn, *data, initial_outputs=start, **options)

    run(1.0, 3)
    once = len(traces)
    run(2.0, 5)
    assert len(traces) == once


WRONG_INPUTS = {
    "complex": ({"kernel": 1j * jnp.eye(3)}, r"`kernel` must be an array of real"),
    "infinite": ({"time": jnp.inf}, r"`time` must be finite and at least 0"),
    "vector": (
        {"initial_outputs": jnp.zeros(3)},
        r"`initial_outputs` must be \[n, k\]",
    ),
    "examples": ({"targets": jnp.zeros(2)}, r"`targets` must have as many examples"),
    "test": ({"kernel_test": jnp.ones((2, 3))}, r"must both be given"),
    "loss": ({"loss_fn": lambda f, y: jnp.sum(f)}, r"`loss_fn` must return one loss"),
    "tolerance": ({"tolerance": 0.0}, r"`tolerance` must be between 0 and 1"),
    "steps": ({"max_steps": 0}, r"`max_steps` must be an integer of at least 1"),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    given = {
        "loss_fn": half_square,
        "kernel": jnp.eye(3),
        "targets": jnp.zeros((3, 2)),
        "initial_outputs": jnp.zeros((3, 2)),
        "time": 1.0,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        predict.gradient_flow(
            given.pop("loss_fn"), given.pop("kernel"), given.pop("targets"), **given
        )
