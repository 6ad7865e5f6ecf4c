"""Nystrom approximation and its preconditioner against dense float64 matrices."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import oracles
import pytest
import scipy.linalg

from jaxtheory import linalg

EPS = np.finfo(np.float32).eps


def new_key():
    return jax.random.key(0)


def positive(eigenvalues, seed=0):
    """A positive semidefinite matrix with these eigenvalues, and no structure."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T


def matrix_operator(matrix):
    return lx.MatrixLinearOperator(
        jnp.asarray(matrix, float), lx.positive_semidefinite_tag
    )


def blocks(matrix, vector):
    out = matrix @ jnp.concatenate([vector["a"], vector["b"].ravel()])
    return {"a": out[:7], "b": out[7:].reshape(3, 5)}


def blocks_operator(matrix):
    shapes = {"a": jnp.zeros(7), "b": jnp.zeros((3, 5))}
    return linalg.function_operator(blocks, jnp.asarray(matrix), structure=shapes)


def rows(vectors):
    """Eigenvectors of the pytree operator as rows of one matrix."""
    return np.concatenate(
        [vectors["a"], vectors["b"].reshape(len(vectors["b"]), -1)], axis=1
    )


@pytest.mark.parametrize("block_size", [1, 4])
def test_equals_the_formula(x64, block_size):
    """(A W) (W^T A W)^+ (A W)^T, which depends on the span of W alone."""
    matrix = positive(np.geomspace(1, 1e-3, 22))
    operator = blocks_operator(matrix)
    found = linalg.nystrom(operator, key=new_key(), rank=6, block_size=block_size)
    sketch = matrix @ (test := np.asarray(jax.random.normal(new_key(), (22, 6))))
    expected = sketch @ np.linalg.solve(test.T @ sketch, sketch.T)
    basis = rows(found.eigenvectors)
    assert found.eigenvectors["b"].shape == (6, 3, 5)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-13)
    np.testing.assert_allclose(
        (basis.T * np.asarray(found.eigenvalues)) @ basis, expected, atol=1e-12
    )
    assert np.all(np.diff(found.eigenvalues) <= 0)
    assert np.all(found.eigenvalues <= np.geomspace(1, 1e-3, 22)[:6])
    assert 0 < found.shift < 1e-15


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_recovers_a_singular_operator_in_single_precision(scale):
    eigenvalues = np.zeros(30)
    eigenvalues[:4] = [5, 3, 1, 0.5]
    operator = matrix_operator(positive(eigenvalues) * scale)
    found = linalg.nystrom(operator, key=new_key(), rank=12)
    np.testing.assert_allclose(
        found.eigenvalues / scale, eigenvalues[:12], atol=100 * EPS
    )
    assert found.shift < 100 * EPS * scale


def test_spectrum_that_decays_below_rounding():
    """Where the core is not positive definite to rounding: no Cholesky factor."""
    eigenvalues = 10.0 ** -np.arange(40.0)
    found = linalg.nystrom(
        matrix_operator(positive(eigenvalues)), key=new_key(), rank=30
    )
    np.testing.assert_allclose(found.eigenvalues, eigenvalues[:30], atol=100 * EPS)


def test_zero_and_indefinite_and_not_finite():
    zero = linalg.nystrom(matrix_operator(np.zeros((5, 5))), key=new_key(), rank=2)
    np.testing.assert_array_equal(zero.eigenvalues, [0, 0])
    vector = jnp.arange(5.0)
    np.testing.assert_allclose(zero.preconditioner(0.5).mv(vector), 2 * vector)
    np.testing.assert_allclose(zero.preconditioner(0).mv(vector), vector)
    indefinite = matrix_operator(positive([1.0, 0.5, -0.7, -1.0]))
    assert linalg.nystrom(indefinite, key=new_key(), rank=3).shift > 0.1
    spoilt = linalg.nystrom(
        matrix_operator(np.full((4, 4), np.nan)), key=new_key(), rank=2
    )
    assert np.all(np.isnan(spoilt.eigenvalues))


def test_preconditioner_equals_its_dense_form(x64):
    matrix, mu = positive(np.geomspace(1, 1e-6, 22)), 1e-4
    operator = blocks_operator(matrix)
    found = linalg.nystrom(operator, key=new_key(), rank=16)
    dense = oracles.materialise(found.preconditioner(mu))
    basis, values = rows(found.eigenvectors).T, np.asarray(found.eigenvalues)
    inside = (basis * ((values[-1] + mu) / (values + mu))) @ basis.T
    expected = (inside + np.eye(22) - basis @ basis.T) / mu
    np.testing.assert_allclose(dense, expected, atol=1e-12 / mu)
    spectrum = scipy.linalg.eigvals(dense @ (matrix + mu * np.eye(22))).real
    assert spectrum.min() > 1 - 1e-9
    assert spectrum.max() / spectrum.min() < 3
    assert np.linalg.cond(matrix + mu * np.eye(22)) > 9000


def hard_system():
    """A matrix with a long tail, its shift, a right-hand side, the dense solution."""
    matrix, mu = positive(1 / np.arange(1.0, 401) ** 2), 1e-4
    target = np.random.default_rng(1).normal(size=400)
    return matrix, mu, target, np.linalg.solve(matrix + mu * np.eye(400), target)


def test_preconditioned_solves_take_few_steps():
    matrix, mu, target, expected = hard_system()
    operator, target = matrix_operator(matrix), jnp.asarray(target)
    shifted = operator + mu * lx.IdentityLinearOperator(operator.in_structure())
    plain = linalg.conjugate_gradient(shifted, target)
    assert plain.num_steps > 100
    approximation = linalg.nystrom(operator, key=new_key(), rank=120)
    solution = linalg.conjugate_gradient(
        shifted, target, preconditioner=approximation.preconditioner(mu)
    )
    assert solution.converged
    assert solution.num_steps < 15
    error = np.linalg.norm(solution.value - expected) / np.linalg.norm(expected)
    assert error < 1e-3


def test_preconditions_lineax(x64):
    matrix, mu, target, expected = hard_system()
    operator = matrix_operator(matrix)
    approximation = linalg.nystrom(operator, key=new_key(), rank=120)
    solution = lx.linear_solve(
        matrix_operator(matrix + mu * np.eye(400)),
        jnp.asarray(target),
        lx.CG(rtol=1e-6, atol=1e-6),
        options={"preconditioner": approximation.preconditioner(mu)},
    )
    assert solution.stats["num_steps"] < 30
    np.testing.assert_allclose(solution.value, expected, rtol=1e-4, atol=0.01)


def test_half_precision_eigenvectors():
    operator = lx.MatrixLinearOperator(
        jnp.diag(jnp.array([4.0, 2.0, 0.0, 0.0], jnp.bfloat16)),
        lx.positive_semidefinite_tag,
    )
    found = linalg.nystrom(operator, key=new_key(), rank=3)
    assert (found.eigenvectors.dtype, found.eigenvalues.dtype) == (
        jnp.bfloat16,
        jnp.float32,
    )
    np.testing.assert_allclose(found.eigenvalues, [4, 2, 0], atol=0.1)
    image = found.preconditioner(1.0).mv(jnp.ones(4, jnp.bfloat16))
    assert image.dtype == jnp.bfloat16


def test_new_operators_cost_no_new_trace_and_jit_works():
    count = 0

    def product(matrix, vector):
        nonlocal count
        count += 1
        return matrix @ vector

    def measure(scale):
        matrix = scale * jnp.asarray(positive(np.arange(8.0)), jnp.float32)
        operator = linalg.function_operator(product, matrix, structure=jnp.zeros(8))
        found = linalg.nystrom(operator, key=new_key(), rank=3)
        return found.preconditioner(scale).mv(jnp.ones(8))

    first = measure(1.0)
    before = count
    np.testing.assert_allclose(measure(2.0), first / 2, rtol=1e-3)
    assert count == before
    np.testing.assert_allclose(jax.jit(measure)(2.0), first / 2, rtol=1e-3)


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`rank` must be an integer of at least 1, but was 0"),
        ({"rank": 5}, "`rank` must be at most the operator's dimension 4, but was 5"),
        ({"block_size": 0}, "`block_size` must be an integer of at least 1"),
    ],
)
def test_bad_options(options, message):
    options = {"rank": 2, "key": new_key(), **options}
    with pytest.raises(ValueError, match=message):
        linalg.nystrom(matrix_operator(np.eye(4)), **options)


@pytest.mark.usefixtures("user_land")
def test_bad_regularization():
    found = linalg.nystrom(matrix_operator(np.eye(4)), key=new_key(), rank=2)
    for wrong in (-1.0, np.nan, np.ones(2)):
        with pytest.raises(
            ValueError, match="`regularization` must be a finite number"
        ):
            found.preconditioner(wrong)
    with pytest.raises(ValueError, match="`vector` must have shape"):
        found.preconditioner(1.0).mv(jnp.zeros(3))
