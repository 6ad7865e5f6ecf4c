"""Conjugate gradients against dense solves, and against lineax where that fails."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from jaxtheory import linalg


def positive(eigenvalues):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T


def matrix_operator(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix, float), lx.symmetric_tag)


def blocks(matrix, vector):
    out = matrix @ jnp.concatenate([vector["a"], vector["b"].ravel()])
    return {"a": out[:4], "b": out[4:].reshape(3, 2)}


def test_solves_on_a_pytree_in_about_p_steps(x64):
    matrix = positive(np.geomspace(1, 100, 10))
    target = np.random.default_rng(1).normal(size=10)
    vector = {"a": jnp.asarray(target[:4]), "b": jnp.asarray(target[4:]).reshape(3, 2)}
    operator = linalg.function_operator(blocks, jnp.asarray(matrix), structure=vector)
    found = linalg.conjugate_gradient(operator, vector, tolerance=1e-10)
    value = np.concatenate([found.value["a"], found.value["b"].ravel()])
    np.testing.assert_allclose(value, np.linalg.solve(matrix, target), rtol=1e-8)
    assert found.converged
    assert found.num_steps <= 12


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_residual_is_the_true_one(scale):
    matrix = positive(np.geomspace(1, 100, 30))
    target = np.random.default_rng(1).normal(size=30)
    # The right-hand side in the units of the operator, whose squares leave float32.
    found = linalg.conjugate_gradient(
        matrix_operator(matrix * scale), jnp.asarray(target * scale, jnp.float32)
    )
    assert found.converged
    residual = np.linalg.norm(target - matrix @ found.value) / np.linalg.norm(target)
    np.testing.assert_allclose(found.residual, residual, rtol=0.01)
    assert found.residual <= 1e-4


def test_too_few_steps_say_so():
    operator = matrix_operator(positive(np.geomspace(1, 1e4, 30)))
    found = linalg.conjugate_gradient(operator, jnp.ones(30), max_steps=5)
    assert found.num_steps == 5
    assert not found.converged
    assert found.residual > 1e-2


def test_singular_operator():
    """Solved in its range, by the solution of minimum norm; else not converged."""
    matrix = positive([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])
    inside = matrix @ np.arange(6.0)
    found = linalg.conjugate_gradient(
        matrix_operator(matrix), jnp.asarray(inside, jnp.float32)
    )
    assert found.converged
    np.testing.assert_allclose(found.value, np.linalg.pinv(matrix) @ inside, atol=1e-3)
    outside = linalg.conjugate_gradient(
        matrix_operator(np.diag([0.0, 1.0])), jnp.array([1.0, 0.0])
    )
    assert not outside.converged
    np.testing.assert_array_equal(outside.value, [0, 0])
    assert outside.residual == 1


def test_zero_indefinite_and_not_finite():
    zero = linalg.conjugate_gradient(matrix_operator(np.eye(3)), jnp.zeros(3))
    np.testing.assert_array_equal(zero.value, [0, 0, 0])
    assert (int(zero.num_steps), bool(zero.converged)) == (0, True)
    negative = linalg.conjugate_gradient(matrix_operator(-np.eye(3)), jnp.ones(3))
    assert not negative.converged
    np.testing.assert_array_equal(negative.value, [0, 0, 0])
    operator = matrix_operator(np.full((3, 3), np.nan))
    spoilt = linalg.conjugate_gradient(operator, jnp.ones(3))
    assert not spoilt.converged
    assert spoilt.num_steps <= 1
    spoilt = linalg.conjugate_gradient(
        matrix_operator(np.eye(2)), jnp.array([1, jnp.nan])
    )
    assert not spoilt.converged


def test_large_systems_in_single_precision():
    """Why there is one beside lineax's: that takes small curvature for none."""
    diagonal = jnp.linspace(0.01, 0.3, 20_000)
    target = jax.random.normal(jax.random.key(0), (20_000,))
    operator = linalg.function_operator(
        jnp.multiply, diagonal, structure=target, tags=lx.positive_semidefinite_tag
    )
    found = linalg.conjugate_gradient(operator, target)
    assert found.converged
    np.testing.assert_allclose(found.value, target / diagonal, rtol=0.1, atol=0.1)
    solver = lx.CG(rtol=1e-4, atol=1e-4)
    peer = lx.linear_solve(operator, target, solver, throw=False)
    assert not np.any(np.isfinite(peer.value))


def test_new_operators_cost_no_new_trace_and_vmap_works():
    count = 0

    def product(matrix, vector):
        nonlocal count
        count += 1
        return matrix @ vector

    def solve(scale):
        matrix = scale * jnp.asarray(positive(np.arange(1.0, 9)), jnp.float32)
        operator = linalg.function_operator(product, matrix, structure=jnp.zeros(8))
        return linalg.conjugate_gradient(operator, jnp.ones(8)).value

    first = solve(1.0)
    before = count
    np.testing.assert_allclose(solve(2.0), first / 2, rtol=1e-3, atol=1e-4)
    assert count == before
    both = jax.vmap(solve)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(both, np.stack([first, first / 2]), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": jnp.eye(3)}, "`operator` must be a lineax operator"),
        ({"vector": 1j * jnp.ones(3)}, "`vector` must be real, .* dtype complex64"),
        ({"vector": jnp.ones(4)}, r"`vector` must have shape \(3,\), but has \(4,\)"),
        (
            {"preconditioner": lx.MatrixLinearOperator(jnp.eye(2))},
            r"`preconditioner` must have shape \(3,\), but has \(2,\)",
        ),
        ({"tolerance": 0.0}, "`tolerance` must be a positive number, but was 0.0"),
        ({"max_steps": 0}, "`max_steps` must be an integer of at least 1"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"operator": lx.MatrixLinearOperator(jnp.eye(3)), "vector": jnp.ones(3)}
    with pytest.raises(ValueError, match=message):
        linalg.conjugate_gradient(**{**arguments, **changes})
