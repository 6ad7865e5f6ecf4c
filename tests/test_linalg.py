import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from matfree import decomp, eig

from jaxtheory import linalg


def new_key():
    """The same fresh key each time: one that was used may not be used again."""
    return jax.random.key(0)


def symmetric(seed, p, eigenvalues=None):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(p, p)))
    eigenvalues = rng.normal(size=p) if eigenvalues is None else eigenvalues
    return jnp.asarray((q * eigenvalues) @ q.T, jnp.result_type(float))


def matrix_operator(matrix):
    return lx.MatrixLinearOperator(matrix, lx.symmetric_tag)


def block_product(matrix, vector):
    flat = jnp.concatenate([vector["a"], vector["b"].ravel()])
    out = matrix @ flat
    return {"a": out[:3], "b": out[3:].reshape(2, 2)}


BLOCKS = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}


def test_full_krylov_space_gives_every_eigenpair():
    matrix = symmetric(0, 7)
    operator = linalg.function_operator(
        block_product, matrix, structure=BLOCKS, tags=lx.symmetric_tag
    )
    top = linalg.top_eigenpairs(operator, num=7, key=new_key())
    exact = np.linalg.eigvalsh(np.asarray(matrix, np.float64))[::-1]
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(top.values, exact, atol=20 * eps)
    assert top.vectors["b"].shape == (7, 2, 2)
    vectors = np.concatenate([top.vectors["a"], top.vectors["b"].reshape(7, 4)], 1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(7), atol=20 * eps)
    np.testing.assert_allclose(
        np.asarray(matrix) @ vectors.T, vectors.T * exact, atol=40 * eps
    )
    assert np.all(top.converged)


def test_double_precision(x64):
    matrix = symmetric(1, 30)
    top = linalg.top_eigenpairs(
        matrix_operator(matrix), num=3, key=new_key(), num_iterations=30
    )
    assert top.values.dtype == jnp.float64
    exact = np.linalg.eigvalsh(matrix)[::-1][:3]
    np.testing.assert_allclose(top.values, exact, atol=1e-13)
    assert np.all(top.residuals < 1e-12)


def test_agrees_with_matfree_and_residual_bounds_the_error():
    """Same start, same depth: the Ritz values of matfree's Lanczos."""
    matrix = symmetric(2, 60, np.linspace(0.01, 1, 60) ** 2)
    start = jnp.ones(60)
    ours = linalg.top_eigenpairs(
        matrix_operator(matrix), num=2, key=new_key(), num_iterations=12, start=start
    )
    algorithm = eig.eigh_partial(decomp.tridiag_sym(12))
    values, _ = algorithm(lambda v: matrix @ v, start)
    np.testing.assert_allclose(ours.values, values[::-1][:2], rtol=1e-5)
    exact = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
    distance = np.abs(np.asarray(ours.values)[:, None] - exact).min(axis=1)
    assert np.all(distance <= np.asarray(ours.residuals) + 1e-6)
    assert not ours.converged[1]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_exhausted_krylov_space_brings_no_ghosts(rank):
    """An operator of low rank has each eigenvalue once, and zeros, not NaN."""
    eigenvalues = np.zeros(20)
    eigenvalues[:rank] = np.arange(1, rank + 1)
    top = linalg.top_eigenpairs(
        matrix_operator(symmetric(3, 20, eigenvalues)),
        num=5,
        key=new_key(),
        num_iterations=15,
    )
    np.testing.assert_allclose(top.values, np.sort(eigenvalues)[::-1][:5], atol=2e-6)


def test_lanczos_compresses_the_operator():
    matrix = symmetric(4, 25)
    krylov = linalg.lanczos(
        lambda v: matrix @ v, jnp.ones(25), num_iterations=10, key=new_key()
    )
    basis = np.asarray(krylov.basis)
    tridiagonal = np.diag(krylov.diagonal) + sum(
        np.diag(krylov.off_diagonal, shift) for shift in (1, -1)
    )
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(basis @ basis.T, np.eye(10), atol=20 * eps)
    np.testing.assert_allclose(
        basis @ np.asarray(matrix) @ basis.T, tridiagonal, atol=40 * eps
    )


def test_one_trace_for_new_operators_of_the_same_kind():
    count = 0

    def product(matrix, vector):
        nonlocal count
        count += 1
        return matrix @ vector

    def measure(seed):
        operator = linalg.function_operator(
            product,
            symmetric(seed, 12),
            structure=jnp.zeros(12),
            tags=lx.symmetric_tag,
        )
        linalg.top_eigenpairs(operator, num=2, key=jax.random.key(seed))
        linalg.trace(operator, key=jax.random.key(seed), num_samples=4)

    measure(0)
    first = count
    measure(1)
    assert count == first


def test_inside_jit_vmap_and_for_a_closure():
    stack = jnp.stack([symmetric(seed, 9) for seed in (5, 6)])

    def top(matrix):
        return linalg.top_eigenpairs(matrix_operator(matrix), key=new_key()).values[0]

    exact = np.linalg.eigvalsh(np.asarray(stack)).max(axis=1)
    np.testing.assert_allclose(jax.vmap(top)(stack), exact, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(top)(stack[0]), exact[0], rtol=1e-5)
    closure = lx.FunctionLinearOperator(
        lambda v: stack[0] @ v,
        jax.ShapeDtypeStruct((9,), jnp.float32),
        lx.symmetric_tag,
    )
    value = linalg.top_eigenpairs(closure, key=new_key()).values[0]
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)


def test_trace_and_its_standard_error():
    """Against the exact trace and the closed-form Rademacher variance."""
    matrix = np.asarray(symmetric(7, 40))
    estimate = linalg.trace(
        matrix_operator(jnp.asarray(matrix)), key=new_key(), num_samples=400
    )
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2))
    expected_error = np.sqrt(variance / 400)
    assert abs(estimate.value - np.trace(matrix)) < 4 * expected_error
    # The sample standard deviation of 400 draws has relative error about 1/sqrt(800).
    assert abs(estimate.standard_error / expected_error - 1) < 4 / np.sqrt(800) + 0.05
    assert estimate.num_samples == 400


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_whose_squares_leave_single_precision(scale):
    matrix = symmetric(9, 12)
    exact = np.linalg.eigvalsh(np.asarray(matrix, np.float64))[::-1][:3]
    top = linalg.top_eigenpairs(
        matrix_operator(matrix * scale),
        num=3,
        key=new_key(),
        num_iterations=12,
        start=jnp.full(12, scale),
    )
    assert np.all(top.converged)
    np.testing.assert_allclose(
        top.values / scale, exact, atol=40 * np.finfo(np.float32).eps
    )


def test_half_precision_operators():
    matrix = jnp.diag(jnp.array([4.0, -2.0, 1.0], jnp.bfloat16))
    top = linalg.top_eigenpairs(matrix_operator(matrix), num=2, key=new_key())
    # What the products round: a few eps of the largest eigenvalue.
    atol = 4 * 4 * float(jnp.finfo(jnp.bfloat16).eps)
    np.testing.assert_allclose(top.values, [4, 1], atol=atol)
    assert top.vectors.dtype == jnp.bfloat16
    estimate = linalg.trace(matrix_operator(matrix), key=new_key(), num_samples=3)
    assert (float(estimate.value), estimate.value.dtype) == (3.0, jnp.float32)


def test_numpy_arrays_in_an_operator():
    matrix = np.diag(np.float32([3.0, -5.0, 1.0]))
    operator = linalg.function_operator(
        jnp.matmul,
        matrix,
        structure=np.zeros(3, np.float32),
        tags=lx.symmetric_tag,
    )
    value = linalg.top_eigenpairs(operator, key=new_key()).values[0]
    np.testing.assert_allclose(value, 3, rtol=1e-5)
    assert float(linalg.trace(operator, key=new_key()).value) == -1


def test_a_non_finite_operator_never_converges():
    top = linalg.top_eigenpairs(
        matrix_operator(jnp.full((5, 5), jnp.nan)), key=new_key()
    )
    assert not np.any(top.converged)
    assert not np.any(np.isfinite(top.values))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 10}, "`num` must be between 1 and the operator's dimension 9"),
        ({"num": 0}, "`num` must be an integer of at least 1, but was 0"),
        ({"num": 1.5}, "`num` must be an integer of at least 1, but was 1.5"),
        ({"num_iterations": 10}, "`num_iterations` must be between"),
        ({"num_iterations": 2.5}, "`num_iterations` must be an integer"),
        ({"start": jnp.zeros(4)}, "`start` must have shape"),
    ],
)
def test_bad_input_to_top_eigenpairs(user_land, options, message):
    operator = matrix_operator(symmetric(8, 9))
    with pytest.raises(ValueError, match=message):
        linalg.top_eigenpairs(operator, key=new_key(), **options)


def test_bad_operators_and_vectors(user_land):
    wide = lx.MatrixLinearOperator(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="must map a space to itself"):
        linalg.trace(wide, key=new_key())
    for num_samples in (1, 2.5, True):
        with pytest.raises(
            ValueError, match="`num_samples` must be an integer of at l"
        ):
            linalg.trace(
                matrix_operator(symmetric(8, 9)), key=new_key(), num_samples=num_samples
            )
    with pytest.raises(ValueError, match=r"`operator` must be a lineax.*MatrixLinear"):
        linalg.trace(jnp.eye(3), key=new_key())
    with pytest.raises(ValueError, match=r"`operator` must act on real.*complex64"):
        linalg.top_eigenpairs(matrix_operator(jnp.eye(3) * 1j), key=new_key())
    operator = linalg.function_operator(
        block_product, symmetric(0, 7), structure=BLOCKS
    )
    with pytest.raises(ValueError, match="must have the structure"):
        operator.mv(jnp.zeros(7))
    with pytest.raises(ValueError, match=r"`vector\['b'\]` must have shape \(2, 2\)"):
        operator.mv({"a": jnp.zeros(3), "b": jnp.zeros(4)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": jnp.ones((3, 1))}, r"`start` must be .*vector.*shape \(3, 1\)"),
        ({"start": jnp.ones(3, int)}, "`start` must be a floating.*dtype int32"),
        ({"num_iterations": 4}, "`num_iterations` must be at most .*3, but was 4"),
        ({"num_iterations": 0}, "`num_iterations` must be an integer of at least 1"),
        ({"product": jnp.sum}, r"`product` must return .*\(3,\), but.*shape \(\)"),
    ],
)
def test_bad_input_to_lanczos(user_land, changes, message):
    options = {"product": jnp.sin, "start": jnp.ones(3), "num_iterations": 2} | changes
    product, start = options.pop("product"), options.pop("start")
    with pytest.raises(ValueError, match=message):
        linalg.lanczos(product, start, key=new_key(), **options)
