"""Traces, diagonals, norms and determinants against dense matrices and matfree.

Standard errors are held against the closed-form variances, or against the spread of
repeated runs, compiled once and run for many keys.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from matfree import stochtrace

from jaxtheory import linalg

EPS = np.finfo(np.float32).eps


def new_key():
    return jax.random.key(0)


def rotated(eigenvalues):
    """A symmetric matrix with these eigenvalues, and no structure."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T


def matrix_operator(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix, float), lx.symmetric_tag)


def off_diagonal_squares(matrix):
    return np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)


DECAYING = 0.8 ** np.arange(60.0)


def repeated(estimator, num):
    """The estimates and standard errors of `num` independent runs."""
    keys = jax.random.split(new_key(), num)
    run = jax.jit(lambda keys: jax.lax.map(lambda key: estimator(key)[:2], keys))
    return (np.asarray(a) for a in run(keys))


@pytest.mark.parametrize(
    ("method", "gain", "allowed", "num_samples"),
    [("hutchinson", 1, 0.1, 30), ("hutch++", 2, 0.1, 10), ("xtrace", 4, 0.25, 15)],
)
def test_standard_errors_of_traces_are_the_spread_of_repeated_runs(
    method, gain, allowed, num_samples
):
    """And that is smaller than Hutchinson's by the gain, where the spectrum decays."""
    matrix = rotated(DECAYING)
    operator = matrix_operator(matrix)
    estimator = lambda key: linalg.trace(
        operator, key=key, num_samples=30, method=method
    )
    assert estimator(new_key()).num_samples == num_samples
    values, errors = repeated(estimator, 400)
    spread = np.std(values, ddof=1)
    expected = np.sqrt(2 * off_diagonal_squares(matrix) / 30)
    assert spread < (1 + 4 / np.sqrt(800)) * expected / gain
    # Without bias, and the mean squared standard error is the variance. (XTrace's
    # estimates are not independent: its errors come out a fifth too small here.)
    assert abs(np.mean(values) - np.sum(DECAYING)) < 4 * spread / np.sqrt(400)
    ratio = np.sqrt(np.mean(errors**2)) / spread
    assert abs(ratio - 1) < allowed


def test_xtrace_agrees_with_matfree(x64):
    """Estimate by estimate, on the same test vectors; of an asymmetric matrix too."""
    from jaxtheory.linalg import _trace

    matrix = jnp.asarray(rotated(DECAYING) + 0.1 * np.triu(rotated(DECAYING), 1))
    tests = jax.random.normal(new_key(), (10, 60))
    basis, triangle = jnp.linalg.qr(matrix @ tests.T)
    ours = _trace.xtrace_samples(tests.T, basis, triangle, matrix @ basis)
    with jax.numpy_rank_promotion("allow"):
        theirs = stochtrace.leave_one_out_xtrace()(lambda v: matrix @ v, tests)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25])
def test_low_rank_is_exact_at_any_scale(method, scale):
    values = np.r_[3.0, 2.0, np.zeros(38)]
    found = linalg.trace(
        matrix_operator(scale * rotated(values)),
        key=new_key(),
        num_samples=18,
        method=method,
    )
    np.testing.assert_allclose(found.value / scale, 5, rtol=40 * EPS)
    assert found.standard_error / scale < 40 * EPS


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_more_samples_than_dimensions_and_the_zero_operator(method):
    options = {"num_samples": 40, "method": method}
    matrix = rotated(np.arange(5.0))
    found = linalg.trace(matrix_operator(matrix), key=new_key(), **options)
    assert abs(found.value - 10) <= 4 * found.standard_error + 100 * EPS
    zero = linalg.trace(matrix_operator(np.zeros((5, 5))), key=new_key(), **options)
    assert (float(zero.value), float(zero.standard_error)) == (0, 0)


def test_quadrature_and_hutchinson_agree_on_identical_probes(x64):
    """Reference item 14: the trace by quadrature is Hutchinson's, at any depth."""
    operator = matrix_operator(rotated(DECAYING))
    trace = linalg.trace(operator, key=new_key(), num_samples=6)
    spectrum = linalg.spectral_density(
        operator, key=new_key(), num_probes=6, num_iterations=3
    )
    nested = spectrum.trace_of(lambda x: x)
    np.testing.assert_allclose(nested.value, trace.value, rtol=1e-13)
    np.testing.assert_allclose(nested.standard_error, trace.standard_error, rtol=1e-11)


def blocks(matrix, vector):
    out = matrix @ jnp.concatenate([vector["a"], vector["b"].ravel()])
    return {"a": out[:4], "b": out[4:].reshape(3, 2)}


def test_diagonal_of_a_pytree_operator():
    """Not symmetric; the variance of an entry is its row's squares off the diagonal."""
    matrix = np.random.default_rng(1).normal(size=(10, 10))
    operator = linalg.function_operator(
        blocks,
        jnp.asarray(matrix, jnp.float32),
        structure={"a": jnp.zeros(4), "b": jnp.zeros((3, 2))},
    )
    found = linalg.diagonal(operator, key=new_key(), num_samples=400)
    flat = lambda tree: np.concatenate([tree["a"], np.ravel(tree["b"])])
    assert found.value["b"].shape == (3, 2)
    rows = np.sum(matrix**2, axis=1) - np.diag(matrix) ** 2
    expected = np.sqrt(rows / 400)
    assert np.max(np.abs(flat(found.value) - np.diag(matrix)) / expected) < 4
    np.testing.assert_allclose(flat(found.standard_error), expected, rtol=0.2)
    assert found.num_samples == 400
    # The same probes as the trace: its sum is that.
    trace = linalg.trace(operator, key=new_key(), num_samples=400)
    np.testing.assert_allclose(flat(found.value).sum(), trace.value, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_standard_errors_at_scales_whose_squares_leave_single_precision(scale):
    matrix = np.random.default_rng(1).normal(size=(10, 10))
    for estimator in (linalg.trace, linalg.diagonal, linalg.frobenius_norm):
        plain = estimator(matrix_operator(matrix), key=new_key())
        scaled = estimator(matrix_operator(matrix * scale), key=new_key())
        for one, other in zip(plain[:2], scaled[:2], strict=True):
            np.testing.assert_allclose(other / scale, one, rtol=1e-4, atol=1e-6)


def test_frobenius_norm_its_error_and_its_unbiased_square():
    matrix = np.random.default_rng(2).normal(size=(30, 30))
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix, jnp.float32))
    values, errors = repeated(
        lambda key: linalg.frobenius_norm(operator, key=key, num_samples=20), 400
    )
    exact, gram = np.linalg.norm(matrix), matrix.T @ matrix
    variance = 2 * off_diagonal_squares(gram) / 20
    assert abs(np.mean(values**2) - exact**2) < 4 * np.sqrt(variance / 400)
    expected = np.sqrt(variance) / (2 * exact)
    assert abs(np.std(values, ddof=1) / expected - 1) < 4 / np.sqrt(800)
    assert abs(np.sqrt(np.mean(errors**2)) / expected - 1) < 4 / np.sqrt(800)
    zero = linalg.frobenius_norm(matrix_operator(np.zeros((3, 3))), key=new_key())
    assert (float(zero.value), float(zero.standard_error)) == (0, 0)


def test_half_precision_diagonals_and_norms():
    matrix = jnp.diag(jnp.array([3.0, 4.0], jnp.bfloat16))
    operator = lx.MatrixLinearOperator(matrix)
    found = linalg.diagonal(operator, key=new_key(), num_samples=2)
    assert found.value.dtype == jnp.float32
    assert found.value.tolist() == [3, 4]
    assert float(linalg.frobenius_norm(operator, key=new_key()).value) == 5


def test_log_determinant_is_exact_on_a_diagonal(x64):
    values = np.geomspace(1e-3, 10, 20)
    operator = matrix_operator(np.diag(values))
    found = linalg.log_determinant(operator, key=new_key(), num_probes=2)
    np.testing.assert_allclose(found.value, np.sum(np.log(values)), rtol=1e-10)
    assert found.num_negative == 0
    assert found.asymmetry < 1e-12
    assert found.num_samples == 2
    # One that is not what its tag says shows it.
    wrong = np.array([[4.0, 3.0], [0.0, 4.0]])
    assert linalg.log_determinant(matrix_operator(wrong), key=new_key()).asymmetry > 0.1


def test_log_determinant_within_its_standard_error():
    values = np.geomspace(0.05, 2, 40)
    found = linalg.log_determinant(
        matrix_operator(rotated(values)), key=new_key(), num_probes=100
    )
    variance = 2 * off_diagonal_squares(rotated(np.log(values)))
    expected = np.sqrt(variance / 100)
    assert abs(found.value - np.sum(np.log(values))) < 4 * expected
    # The sample deviation of 100 draws has relative error about 1/sqrt(200).
    assert abs(found.standard_error / expected - 1) < 4 / np.sqrt(200)


def test_negative_eigenvalues_are_counted_and_taken_by_name_only():
    values = np.array([-2.0, -0.5, 1.0, 3.0])
    operator = matrix_operator(np.diag(values))
    positive = linalg.log_determinant(operator, key=new_key())
    assert np.isnan(positive.value)
    np.testing.assert_allclose(positive.num_negative, 2, rtol=1e-5)
    absolute = linalg.log_determinant(operator, key=new_key(), eigenvalues="absolute")
    np.testing.assert_allclose(absolute.value, np.log(3), rtol=1e-4)
    np.testing.assert_allclose(absolute.num_negative, 2, rtol=1e-5)
    dimension = linalg.effective_dimension(operator, 1.0, key=new_key())
    np.testing.assert_allclose(dimension.value, 1 / 2 + 3 / 4, rtol=1e-5)
    np.testing.assert_allclose(dimension.num_negative, 2, rtol=1e-5)


def test_singular_operators_have_a_determinant_of_zero():
    operator = matrix_operator(np.diag([0.0, 0.0, 1.0, 3.0]))
    found = linalg.log_determinant(operator, key=new_key())
    assert (float(found.value), float(found.standard_error)) == (-np.inf, np.inf)
    assert found.num_negative == 0
    ridge = 0.5 * lx.IdentityLinearOperator(operator.in_structure())
    lifted = linalg.log_determinant(operator + ridge, key=new_key())
    expected = np.sum(np.log([0.5, 0.5, 1.5, 3.5]))
    np.testing.assert_allclose(lifted.value, expected, rtol=1e-4)


@pytest.mark.parametrize("eigenvalues", ["positive", "absolute"])
def test_no_logarithm_is_taken_of_rounding(eigenvalues):
    operator = matrix_operator(rotated(np.repeat([0.0, 1.0, 2.0], 10)))
    found = linalg.log_determinant(operator, key=new_key(), eigenvalues=eigenvalues)
    assert found.value == -np.inf
    assert found.num_negative == 0


def test_signs_in_half_precision():
    diagonal = jnp.array([-2.0, -0.5, 1.0, 3.0], jnp.bfloat16)
    operator = linalg.function_operator(
        jnp.multiply, diagonal, structure=diagonal, tags=lx.symmetric_tag
    )
    found = linalg.log_determinant(operator, key=new_key())
    np.testing.assert_allclose(found.num_negative, 2, rtol=0.05)
    assert np.isnan(found.value)


def test_operators_that_are_not_finite_show():
    operator = matrix_operator(np.full((4, 4), np.nan))
    for method in ("hutchinson", "hutch++", "xtrace"):
        found = linalg.trace(operator, key=new_key(), num_samples=6, method=method)
        assert np.isnan(found.value)
    for estimator in (linalg.diagonal, linalg.frobenius_norm, linalg.log_determinant):
        found = estimator(operator, key=new_key())
        assert np.all(np.isnan(found.value))
        assert np.all(np.isnan(found.standard_error))


def test_new_operators_cost_no_new_trace():
    count = 0

    def product(matrix, vector):
        nonlocal count
        count += 1
        return matrix @ vector

    def measure(seed):
        matrix = rotated(np.random.default_rng(seed).uniform(1, 2, size=9))
        operator = linalg.function_operator(
            product,
            jnp.asarray(matrix, jnp.float32),
            structure=jnp.zeros(9),
            tags=lx.symmetric_tag,
        )
        for method in ("hutch++", "xtrace"):
            linalg.trace(operator, key=new_key(), num_samples=6, method=method)
        linalg.diagonal(operator, key=new_key())
        linalg.frobenius_norm(operator, key=new_key())
        linalg.log_determinant(operator, key=new_key())

    measure(0)
    first = count
    measure(1)
    assert count == first


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "`method` must be 'hutchinson'.* but was 'best'"),
        ({"method": "xtrace", "num_samples": 3}, "`num_samples` must be .* least 4"),
        ({"method": "hutch++", "num_samples": 2}, "`num_samples` must be .* least 4"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "`key` must be one typed random key"),
    ],
)
def test_bad_options_of_trace(options, message):
    options = {"key": new_key()} | options
    with pytest.raises(ValueError, match=message):
        linalg.trace(matrix_operator(np.eye(4)), **options)


@pytest.mark.usefixtures("user_land")
def test_bad_input_of_the_others():
    operator, wide = (
        matrix_operator(np.eye(4)),
        lx.MatrixLinearOperator(jnp.ones((2, 3))),
    )
    nothing = lx.MatrixLinearOperator(jnp.zeros((0, 0)), lx.symmetric_tag)
    for estimator in (
        linalg.diagonal,
        linalg.frobenius_norm,
        linalg.spectral_density,
        linalg.trace,
    ):
        with pytest.raises(ValueError, match="must act on at least one number"):
            estimator(nothing, key=new_key())
    for estimator in (linalg.diagonal, linalg.frobenius_norm):
        with pytest.raises(ValueError, match="must map a space to itself"):
            estimator(wide, key=new_key())
        with pytest.raises(ValueError, match="`num_samples` must be an integer of at"):
            estimator(operator, key=new_key(), num_samples=1)
        with pytest.raises(ValueError, match="`key` must be one typed random key"):
            estimator(operator, key=3)
    with pytest.raises(ValueError, match=r"`eigenvalues` must be .* but was 'all'"):
        linalg.log_determinant(operator, key=new_key(), eigenvalues="all")
    with pytest.raises(ValueError, match="'xtrace' needs an operator of dimension at"):
        linalg.trace(matrix_operator(np.eye(1)), key=new_key(), method="xtrace")
