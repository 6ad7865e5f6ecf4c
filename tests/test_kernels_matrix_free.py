"""Regression by products against dense solves and the linearised network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from jaxtheory import kernels

N, M = 24, 5


def mlp(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]


def problem(seed=0, k=2, dtype=jnp.float32, n=N):
    """Parameters, inputs, targets, test inputs."""
    keys = jax.random.split(jax.random.key(seed), 6)
    normal = lambda key, *shape: jax.random.normal(key, shape, dtype)
    params = {
        "w1": normal(keys[0], 4, 6) / 2,
        "b1": normal(keys[1], 6) / 2,
        "w2": normal(keys[2], 6, k) / 2,
    }
    x = normal(keys[3], n, 4)
    return params, x, normal(keys[4], n, k), normal(keys[5], M, 4)


def jacobians(params, *inputs):
    """Dense float64 Jacobians ``[n k, p]``."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacfwd(lambda w, x: mlp(unravel(w), x)))
    return [
        np.asarray(jacobian(flat, x), np.float64).reshape(-1, flat.size) for x in inputs
    ]


def solve(params, x, targets, x_test, ridge):
    """Coefficients and predictions of the dense full kernel."""
    train, test = jacobians(params, x, x_test)
    shifted = train @ train.T + ridge * np.eye(len(train))
    coefficients = np.linalg.solve(shifted, np.asarray(targets, np.float64).ravel())
    k = targets.shape[1]
    return coefficients.reshape(-1, k), (test @ train.T @ coefficients).reshape(-1, k)


def new_key():
    return jax.random.key(3)


def assert_close(found, expected, tolerance):
    """Agreement to `tolerance` of the largest entry."""
    assert found.shape == expected.shape
    error = np.max(np.abs(np.asarray(found, np.float64) - expected))
    assert error <= tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("rank", "batch_size", "factor"), [(0, None, 1.0), (None, 7, 4.0)]
)
def test_matches_dense_solve(rank, batch_size, factor):
    """A factor of all parameters is one of the kernel: with that of the ridge, none."""
    data = problem()
    coefficients, predictions = solve(*data, 1.0)
    fit = kernels.ntk_regression(
        mlp,
        *data,
        ridge=factor,
        key=new_key(),
        rank=rank,
        batch_size=batch_size,
        tolerance=2e-6,
        param_scale=None if factor == 1 else factor,
    )
    assert fit.converged
    assert fit.residual <= 2e-6
    assert_close(factor * fit.coefficients, coefficients, 1e-5)
    assert_close(fit.predictions, predictions, 1e-5)


def test_double_precision_and_the_linearised_network(x64):
    """Dense dual solve, and the primal one: ridge regression on the Jacobian."""
    data = problem(dtype=jnp.float64)
    ridge = 0.01
    fit = kernels.ntk_regression(
        mlp, *data, ridge=ridge, key=new_key(), rank=20, batch_size=7, tolerance=1e-12
    )
    assert fit.converged
    coefficients, predictions = solve(*data, ridge)
    assert_close(fit.coefficients, coefficients, 1e-9)
    assert_close(fit.predictions, predictions, 1e-9)
    params, x, targets, x_test = data
    train, test = jacobians(params, x, x_test)
    rows = np.concatenate([train, np.sqrt(ridge) * np.eye(train.shape[1])])
    goal = np.concatenate([np.ravel(targets), np.zeros(train.shape[1])])
    step = np.linalg.lstsq(rows, goal)[0]
    assert_close(fit.predictions, (test @ step).reshape(M, -1), 1e-9)


def test_one_output_is_kernel_regression(x64):
    params, x, targets, x_test = problem(k=1, dtype=jnp.float64)
    options = {"ridge": 0.5, "rank": 0, "tolerance": 1e-12}
    fit = kernels.ntk_regression(
        mlp, params, x, targets, x_test, key=new_key(), **options
    )
    peer = kernels.kernel_regression(
        kernels.empirical_ntk(mlp, params, x),
        targets,
        kernels.empirical_ntk(mlp, params, x_test, x),
        ridge=0.5,
    )
    assert_close(fit.predictions, np.asarray(peer.predictions), 1e-10)
    assert_close(fit.coefficients, np.asarray(peer.coefficients), 1e-10)


def test_preconditioner_saves_steps():
    data = problem()
    plain = kernels.ntk_regression(mlp, *data, ridge=0.02, key=new_key(), rank=0)
    fast = kernels.ntk_regression(mlp, *data, ridge=0.02, key=new_key(), rank=40)
    assert fast.converged
    assert fast.num_steps < plain.num_steps / 2


def test_what_does_not_converge_says_so():
    data = problem()
    fit = kernels.ntk_regression(
        mlp, *data, ridge=1e-3, key=new_key(), rank=0, max_steps=3
    )
    assert (int(fit.num_steps), bool(fit.converged)) == (3, False)
    params, x, targets, x_test = data
    fit = kernels.ntk_regression(
        mlp, params, x, targets * jnp.nan, x_test, ridge=1.0, key=new_key(), rank=0
    )
    assert not fit.converged


def test_sharded_inputs(eight_devices):
    """As on one device: both equal the dense solution."""
    params, x, targets, x_test = problem(n=64)
    spread = NamedSharding(eight_devices, PartitionSpec("data"))
    fit = kernels.ntk_regression(
        mlp,
        params,
        *jax.device_put((x, targets), spread),
        x_test,
        ridge=10.0,
        key=new_key(),
        rank=10,
        batch_size=3,
        tolerance=2e-6,
    )
    assert fit.converged
    coefficients, predictions = solve(params, x, targets, x_test, 10.0)
    assert_close(fit.coefficients, coefficients, 1e-5)
    assert_close(fit.predictions, predictions, 1e-5)


def test_new_parameters_cost_no_new_trace_and_jit_works():
    count = 0

    def counted(params, x):
        nonlocal count
        count += 1
        return mlp(params, x)

    def measure(seed, ridge):
        return kernels.ntk_regression(
            counted, *problem(seed), ridge=ridge, key=new_key(), rank=0
        )

    first = measure(0, 1.0)
    before = count
    measure(1, 2.0)
    # Building two operators checks the shape of the outputs of two sets of inputs.
    assert count <= before + 4
    again = jax.jit(lambda ridge: measure(0, ridge))(1.0)
    assert_close(again.predictions, np.asarray(first.predictions), 1e-3)


WRONG_INPUTS = {
    "vector": ({"targets": jnp.ones(N)}, r"`targets` must be \[n, k\].*\[:, None\]"),
    "outputs": ({"targets": jnp.ones((N, 3))}, r"`targets` must be .* shape \(24, 3\)"),
    "ridge": ({"ridge": -1.0}, "`ridge` must be a finite number, at least 0"),
    "ridges": ({"ridge": jnp.ones(2)}, "`ridge` must be a finite number"),
    "rank": ({"rank": 49}, "`rank` must be at most the operator's dimension 48"),
    "negative": ({"rank": -1}, "`rank` must be an integer of at least 0"),
    "steps": ({"max_steps": 0}, "`max_steps` must be an integer of at least 1"),
    "tolerance": ({"tolerance": 0.0}, "`tolerance` must be a positive number"),
    "test": (
        {"x_test": jnp.ones((M, 5))},
        "`x_test` must have the structure and the shapes of `x`",
    ),
}


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_bad_input(case):
    changes, message = WRONG_INPUTS[case]
    params, x, targets, x_test = problem()
    arguments = {
        "apply_fn": mlp,
        "params": params,
        "x": x,
        "targets": targets,
        "x_test": x_test,
        "ridge": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        kernels.ntk_regression(key=new_key(), **{**arguments, **changes})
