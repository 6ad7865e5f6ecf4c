"""Stochastic Lanczos quadrature against dense eigenvalues.

Probes of signs see the trace of a diagonal matrix without any error, which makes
several checks exact; the others hold within the standard error of the estimate itself.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from jaxtheory import linalg

EPS = np.finfo(np.float32).eps


def new_key():
    return jax.random.key(0)


def matrix_operator(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix, float), lx.symmetric_tag)


def rotated(eigenvalues):
    """A symmetric matrix with these eigenvalues, and no structure."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    return (q * eigenvalues) @ q.T


def gaussian(grid, centres, width):
    peaks = np.exp(-(((grid[:, None] - centres[None]) / width) ** 2) / 2)
    return peaks.mean(axis=1) / (width * np.sqrt(2 * np.pi))


def test_diagonal_operator_is_exact():
    eigenvalues = np.linspace(-1, 2, 12)
    spectrum = linalg.spectral_density(
        matrix_operator(np.diag(eigenvalues)), key=new_key(), num_probes=3
    )
    assert spectrum.dimension == 12
    np.testing.assert_allclose(
        spectrum.nodes, np.tile(eigenvalues, (3, 1)), atol=40 * EPS
    )
    np.testing.assert_allclose(spectrum.weights, np.full((3, 12), 1 / 12), atol=1e-5)
    grid = np.linspace(-3, 4, 50)
    density = spectrum.density(jnp.asarray(grid), width=0.2)
    np.testing.assert_allclose(
        density.value, gaussian(grid, eigenvalues, 0.2), atol=1e-5
    )
    np.testing.assert_allclose(np.trapezoid(density.value, grid), 1, atol=1e-4)
    np.testing.assert_allclose(density.standard_error, 0, atol=1e-5)


def test_polynomials_up_to_degree_2m_minus_1_are_exact(x64):
    eigenvalues = np.random.default_rng(0).normal(size=40)
    spectrum = linalg.spectral_density(
        matrix_operator(np.diag(eigenvalues)),
        key=new_key(),
        num_probes=2,
        num_iterations=4,
    )
    assert spectrum.nodes.dtype == jnp.float64
    for degree in range(8):
        found = spectrum.trace_of(lambda t, degree=degree: t**degree)
        expected = np.sum(eigenvalues**degree)
        np.testing.assert_allclose(found.value, expected, rtol=1e-11)
    beyond = spectrum.trace_of(lambda t: t**8).value
    assert abs(beyond / np.sum(eigenvalues**8) - 1) > 1e-3
    with pytest.raises(ValueError, match=r"\[s, m\] = \[2, 4\], .* shape \(2, 1\)"):
        spectrum.trace_of(lambda t: t[:, :1])


def test_traces_of_functions_within_their_standard_errors():
    """Of the exponential, with the closed-form variance of a probe of signs."""
    eigenvalues = np.random.default_rng(1).normal(size=50)
    matrix = rotated(eigenvalues)
    spectrum = linalg.spectral_density(
        matrix_operator(matrix), key=new_key(), num_probes=200, num_iterations=20
    )
    found = spectrum.trace_of(jnp.exp)
    function = rotated(np.exp(eigenvalues))
    variance = 2 * (np.sum(function**2) - np.sum(np.diag(function) ** 2))
    error = np.sqrt(variance / 200)
    assert abs(found.value - np.trace(function)) < 4 * error
    # The sample deviation of 200 draws has relative error about 1/sqrt(400).
    assert abs(found.standard_error / error - 1) < 4 / np.sqrt(400) + 0.05
    assert found.num_samples == 200
    grid = np.linspace(-2.5, 2.5, 40)
    density = spectrum.density(jnp.asarray(grid), width=0.3)
    deviation = (density.value - gaussian(grid, eigenvalues, 0.3)) / np.maximum(
        density.standard_error, 1e-6
    )
    assert np.max(np.abs(deviation)) < 5


def test_low_rank_operator_keeps_its_mass_at_zero():
    eigenvalues = np.zeros(30)
    eigenvalues[:2] = [1, 5]
    spectrum = linalg.spectral_density(
        matrix_operator(rotated(eigenvalues)),
        key=new_key(),
        num_probes=400,
        num_iterations=6,
    )
    np.testing.assert_allclose(spectrum.weights.sum(axis=1), 1, atol=20 * EPS)
    rank = spectrum.trace_of(lambda t: 1.0 * (t > 0.5))
    assert abs(rank.value - 2) < 4 * rank.standard_error
    assert rank.standard_error < 0.2


def test_each_probe_reproduces_the_first_2m_moments(x64):
    """Reference item 7: of its own start vector, sharper than any plot."""
    matrix = rotated(np.random.default_rng(2).uniform(-1, 1, size=40))
    start = np.random.default_rng(3).normal(size=40)
    start /= np.linalg.norm(start)
    for num_iterations in (5, 10, 20):
        krylov = linalg.lanczos(
            lambda v: jnp.asarray(matrix) @ v,
            jnp.asarray(start),
            num_iterations=num_iterations,
            key=new_key(),
        )
        beside = krylov.off_diagonal
        nodes, vectors = np.linalg.eigh(
            np.diag(krylov.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        )
        power = start
        for degree in range(2 * num_iterations):
            found = np.sum(vectors[0] ** 2 * nodes**degree)
            np.testing.assert_allclose(found, start @ power, atol=1e-13)
            power = matrix @ power


def test_as_many_iterations_as_dimensions_are_exact(x64):
    eigenvalues = np.linspace(-1, 2, 15)
    spectrum = linalg.spectral_density(
        matrix_operator(rotated(eigenvalues)), key=new_key(), num_iterations=15
    )
    np.testing.assert_allclose(
        spectrum.nodes, np.tile(eigenvalues, (16, 1)), atol=1e-13
    )
    np.testing.assert_allclose(spectrum.weights.sum(axis=1), 1, rtol=1e-13)


def test_moments_and_their_standard_errors(x64):
    """Exact on a diagonal up to degree 2m-1; elsewhere within closed-form errors."""
    eigenvalues = np.random.default_rng(0).normal(size=40)
    options = {"num_probes": 200, "num_iterations": 4, "key": new_key()}
    powers = np.arange(1, 8)
    expected = np.mean(eigenvalues[:, None] ** powers, axis=0)
    found = linalg.spectral_density(
        matrix_operator(np.diag(eigenvalues)), **options
    ).moments(7)
    np.testing.assert_allclose(found.value, expected, rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-10)
    options["key"] = new_key()
    found = linalg.spectral_density(
        matrix_operator(rotated(eigenvalues)), **options
    ).moments(7)
    matrices = [rotated(eigenvalues**power) for power in powers]
    squares = [2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2)) for a in matrices]
    errors = np.sqrt(squares) / 40 / np.sqrt(200)
    assert np.max(np.abs(found.value - expected) / errors) < 4
    np.testing.assert_allclose(found.standard_error, errors, rtol=0.25)


def test_log_density_shows_every_decade_and_both_signs(x64):
    eigenvalues = np.array([1e4, 1e2, 1.0, 1e-2, -1e3, -1e-1, 0.0, 0.0])
    spectrum = linalg.spectral_density(
        matrix_operator(np.diag(eigenvalues)), key=new_key(), num_probes=2
    )
    # Rounding of the two zeros lies far to the left of the grid.
    grid = np.linspace(-2.5, 5, 751)
    shown = lambda sign: spectrum.log_density(jnp.asarray(grid), width=0.1, sign=sign)
    for sign, places in (("positive", [4, 2, 0, -2]), ("negative", [3, -1])):
        expected = gaussian(grid, np.array(places), 0.1) * len(places) / 8
        np.testing.assert_allclose(shown(sign).value, expected, atol=0.02)
        np.testing.assert_allclose(shown(sign).standard_error, 0, atol=0.02)
    total = shown("positive").value + shown("negative").value
    np.testing.assert_allclose(shown("both").value, total, atol=1e-5)
    np.testing.assert_allclose(
        np.trapezoid(shown("both").value, grid), 6 / 8, atol=0.01
    )


def test_log_density_leaves_zeros_out():
    spectrum = linalg.spectral_density(
        matrix_operator(np.zeros((5, 5))), key=new_key(), num_probes=2
    )
    density = spectrum.log_density(jnp.linspace(-9.0, 1.0, 5), width=1.0)
    assert density.value.tolist() == density.standard_error.tolist() == [0] * 5


def test_without_reorthogonalisation_traces_stay_right():
    """Although the recursion makes copies of the outliers."""
    eigenvalues = np.concatenate([[10, 5, 3], np.linspace(-0.3, 0.3, 147)])
    operator = matrix_operator(rotated(eigenvalues))
    options = {"num_probes": 4, "num_iterations": 60}
    plain, full = (
        linalg.spectral_density(
            operator, key=new_key(), reorthogonalise=kind, **options
        )
        for kind in ("none", "full")
    )
    assert np.all(np.sum(np.abs(plain.nodes - 10) < 1e-3, axis=1) > 1)
    assert np.all(np.sum(np.abs(full.nodes - 10) < 1e-3, axis=1) == 1)
    for function in (jnp.exp, jnp.square, lambda x: jnp.exp(-(((x - 5) / 0.3) ** 2))):
        np.testing.assert_allclose(
            plain.trace_of(function).value, full.trace_of(function).value, rtol=1e-4
        )


def blocks(matrix, vector):
    out = matrix @ jnp.concatenate([vector["a"], vector["b"].ravel()])
    return {"a": out[:4], "b": out[4:].reshape(3, 2)}


def test_effective_dimension_of_a_pytree_operator():
    """Several regularisations from the same probes; negative eigenvalues are zero."""
    eigenvalues = np.array([3.0, 1.0, 0.3, 0.1, 0.01, 0.0, 0.0, 0.0, -0.2, -0.4])
    operator = linalg.function_operator(
        blocks,
        jnp.asarray(rotated(eigenvalues), jnp.float32),
        structure={"a": jnp.zeros(4), "b": jnp.zeros((3, 2))},
        tags=lx.symmetric_tag,
    )
    ridges = np.array([[0.01, 0.1], [1.0, 10.0]])
    found = linalg.effective_dimension(
        operator, jnp.asarray(ridges), key=new_key(), num_probes=300
    )
    kept = np.maximum(eigenvalues, 0)
    expected = np.sum(kept / (kept + ridges[..., None]), axis=-1)
    assert found.value.shape == (2, 2)
    assert np.all(np.abs(found.value - expected) < 4 * found.standard_error)
    assert np.all(found.standard_error < 0.05 * expected + 0.05)


def test_effective_dimension_is_exact_on_a_diagonal(x64):
    eigenvalues = np.geomspace(1e-6, 1, 20)
    found = linalg.effective_dimension(
        matrix_operator(np.diag(eigenvalues)), 1e-3, key=new_key(), num_probes=2
    )
    expected = np.sum(eigenvalues / (eigenvalues + 1e-3))
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)


def test_half_precision_and_numpy_scalars():
    matrix = jnp.diag(jnp.array([4.0, 2.0, 0.0], jnp.bfloat16))
    operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
    found = linalg.effective_dimension(operator, np.float64(2), key=new_key())
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, 2 / 3 + 1 / 2, rtol=0.02)


def test_new_operators_cost_no_new_trace_and_jit_works():
    count = 0

    def product(matrix, vector):
        nonlocal count
        count += 1
        return matrix @ vector

    def measure(scale):
        matrix = scale * jnp.asarray(rotated(np.arange(8.0)), jnp.float32)
        operator = linalg.function_operator(
            product, matrix, structure=jnp.zeros(8), tags=lx.symmetric_tag
        )
        return linalg.effective_dimension(operator, scale, key=new_key()).value

    first = measure(1.0)
    before = count
    np.testing.assert_allclose(measure(2.0), first, rtol=1e-4)
    assert count == before
    np.testing.assert_allclose(jax.jit(measure)(2.0), first, rtol=1e-4)


def test_an_operator_that_is_not_finite_shows():
    operator = matrix_operator(np.full((4, 4), np.nan))
    found = linalg.effective_dimension(operator, 1.0, key=new_key())
    assert np.isnan(found.value)
    spectrum = linalg.spectral_density(operator, key=new_key(), num_probes=2)
    assert (
        spectrum.nonfinite_step.tolist() == spectrum.nonfinite_leaf.tolist() == [0] * 2
    )
    density = spectrum.log_density(jnp.zeros(1), width=1.0)
    assert np.isnan(density.value)


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 1}, "`num_probes` must be an integer of at least 2, but was 1"),
        ({"num_iterations": 0}, "`num_iterations` must be an integer of at least 1"),
        ({"num_iterations": 5}, "`num_iterations` must be at most .* 4, but was 5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        linalg.spectral_density(matrix_operator(np.eye(4)), key=new_key(), **options)


@pytest.mark.usefixtures("user_land")
def test_bad_input():
    operator = matrix_operator(np.eye(4))
    for wrong in (0.0, -1, np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="`regularization` must be positive"):
            linalg.effective_dimension(operator, wrong, key=new_key())
    for wrong in (None, "small"):
        with pytest.raises(ValueError, match="`regularization` must be a positive nu"):
            linalg.effective_dimension(operator, wrong, key=new_key())
    with pytest.raises(ValueError, match="must map a space to itself"):
        linalg.spectral_density(
            lx.MatrixLinearOperator(jnp.ones((2, 3))), key=new_key()
        )
    spectrum = linalg.spectral_density(operator, key=new_key(), num_probes=2)
    with pytest.raises(ValueError, match="`width` must be a positive number"):
        spectrum.density(jnp.zeros(2), width=0.0)
    with pytest.raises(ValueError, match=r"`grid` must be a vector \[g\], but has"):
        spectrum.density(jnp.zeros(()), width=1.0)
    with pytest.raises(ValueError, match=r"`sign` must be .* but was 'plus'"):
        spectrum.log_density(jnp.zeros(2), width=1.0, sign="plus")
    with pytest.raises(ValueError, match="`num` must be at most 7, twice the iter"):
        spectrum.moments(8)


def test_known_regularisation_under_jit():
    known = jnp.array(1.0)
    operator = matrix_operator(np.diag([1.0, 3.0]))
    measure = jax.jit(
        lambda key: linalg.effective_dimension(operator, known, key=key).value
    )
    np.testing.assert_allclose(measure(new_key()), 1.25, rtol=1e-5)
