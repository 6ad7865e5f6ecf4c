"""Eigenpairs without stored vectors, at both ends, and what tells bad operators."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

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


def heavy_tail():
    """Five eigenvalues far above a bulk: copies of them come within 40 steps."""
    bulk = 0.1 * np.random.default_rng(1).normal(size=145)
    return np.concatenate([[10, 5, 3, 2, 1.5], bulk])


OUTLIERS = [10, 5, 3, 2, 1.5]


@pytest.mark.parametrize("find", [linalg.top_eigenpairs, linalg.bottom_eigenpairs])
def test_both_ends_from_a_full_krylov_space(find):
    matrix = rotated(np.random.default_rng(2).normal(size=12))
    found = find(matrix_operator(matrix), num=3, key=new_key())
    exact = np.linalg.eigvalsh(matrix)
    expected = exact[::-1][:3] if find is linalg.top_eigenpairs else exact[:3]
    np.testing.assert_allclose(found.values, expected, atol=40 * EPS)
    vectors = np.asarray(found.vectors).T
    np.testing.assert_allclose(matrix @ vectors, vectors * expected, atol=80 * EPS)
    assert np.all(found.converged)
    assert np.all(found.residuals < 80 * EPS)


def test_the_plain_recursion_makes_copies_of_eigenvalues():
    """And the weights of the copies sum to the weight of the one eigenvalue."""
    matrix = rotated(heavy_tail())
    start = np.random.default_rng(3).normal(size=150)
    krylov = linalg.lanczos(
        lambda v: jnp.asarray(matrix, jnp.float32) @ v,
        jnp.asarray(start, jnp.float32),
        num_iterations=90,
        key=new_key(),
        reorthogonalise="none",
    )
    assert krylov.basis is None
    beside = krylov.off_diagonal
    values, vectors = np.linalg.eigh(
        np.diag(krylov.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    )
    copies = np.abs(values - 10) < 1e-3
    assert copies.sum() > 1
    exact = np.linalg.eigh(matrix)[1][:, -1] @ start / np.linalg.norm(start)
    np.testing.assert_allclose(np.sum(vectors[0, copies] ** 2), exact**2, rtol=1e-3)


@pytest.mark.parametrize("num_iterations", [44, 90])
def test_two_passes_count_each_eigenvalue_once(num_iterations):
    operator = matrix_operator(rotated(heavy_tail()))
    found = linalg.top_eigenpairs(
        operator,
        num=5,
        key=new_key(),
        num_iterations=num_iterations,
        reorthogonalise="none",
    )
    np.testing.assert_allclose(found.values, OUTLIERS, atol=10 * 40 * EPS)
    assert np.all(found.converged)
    overlaps = found.vectors @ found.vectors.T
    np.testing.assert_allclose(overlaps, np.eye(5), atol=1e-4)
    vectors, values = np.asarray(found.vectors).T, np.asarray(found.values)
    images = np.asarray(operator.matrix, np.float64) @ vectors
    residuals = np.linalg.norm(images - vectors * values, axis=0)
    np.testing.assert_allclose(found.residuals, residuals, atol=10 * 20 * EPS)


def test_two_passes_in_double_precision_at_the_bottom(x64):
    values = -heavy_tail()
    found = linalg.bottom_eigenpairs(
        matrix_operator(rotated(values)),
        num=5,
        key=new_key(),
        num_iterations=100,
        reorthogonalise="none",
    )
    np.testing.assert_allclose(found.values, -np.asarray(OUTLIERS), atol=1e-12)
    assert np.all(found.residuals < 1e-8)


def test_warm_start_saves_iterations():
    matrix = rotated(heavy_tail())
    top = np.linalg.eigh(matrix)[1][:, -1]
    moved = matrix_operator(matrix + 0.01 * rotated(np.linspace(-1, 1, 150))[::-1])
    moved = matrix_operator((moved.matrix + moved.matrix.T) / 2)
    for kind in ("full", "none"):
        options = {"num_iterations": 3, "reorthogonalise": kind, "key": new_key()}
        cold = linalg.top_eigenpairs(moved, **options)
        options["key"] = new_key()
        warm = linalg.top_eigenpairs(moved, start=jnp.asarray(top, float), **options)
        assert warm.residuals[0] < 1e-4 < 1e-2 < cold.residuals[0]
        assert warm.converged[0]
        assert not cold.converged[0]


@pytest.mark.parametrize("kind", ["full", "none"])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_start_without_direction_is_replaced(kind, value):
    operator = matrix_operator(rotated(np.arange(8.0)))
    top = linalg.top_eigenpairs(
        operator, start=jnp.full(8, value), key=new_key(), reorthogonalise=kind
    )
    np.testing.assert_allclose(top.values, [7], rtol=1e-5)


def test_zero_operator():
    operator = matrix_operator(np.zeros((9, 9)))
    full = linalg.bottom_eigenpairs(operator, num=2, key=new_key())
    assert full.values.tolist() == full.residuals.tolist() == [0, 0]
    assert full.converged.tolist() == [True, True]
    none = linalg.top_eigenpairs(operator, num=2, key=new_key(), reorthogonalise="none")
    # One start vector sees one eigenvalue once.
    np.testing.assert_array_equal(none.values, [0, np.nan])
    assert none.residuals.tolist() == [0, np.inf]
    assert none.converged.tolist() == [True, False]
    np.testing.assert_array_equal(none.vectors[1], 0)
    assert full.asymmetry == none.asymmetry == 0


def test_low_rank_in_two_passes():
    found = linalg.top_eigenpairs(
        matrix_operator(rotated(np.r_[3.0, 2.0, np.zeros(28)])),
        num=4,
        key=new_key(),
        reorthogonalise="none",
    )
    np.testing.assert_allclose(found.values[:3], [3, 2, 0], atol=40 * EPS)
    assert found.converged.tolist() == [True, True, True, False]
    assert np.isnan(found.values[3])


@pytest.mark.parametrize("kind", ["full", "none"])
def test_asymmetry_tells_an_operator_that_is_not_symmetric(kind):
    matrix = rotated(np.random.default_rng(4).normal(size=40))
    options = {"reorthogonalise": kind, "num_iterations": 12, "key": new_key()}
    symmetric = linalg.top_eigenpairs(matrix_operator(matrix), **options)
    assert symmetric.asymmetry < 100 * EPS
    tilted = matrix_operator(matrix + 0.1 * np.triu(matrix, 1))
    options["key"] = new_key()
    assert linalg.top_eigenpairs(tilted, **options).asymmetry > 0.01


def test_asymmetry_is_that_of_the_compression(x64):
    """Full: the largest |v_i' A v_j - v_j' A v_i|, where one of them is known."""
    matrix = np.random.default_rng(5).normal(size=(15, 15))
    krylov = linalg.lanczos(
        lambda v: jnp.asarray(matrix) @ v, jnp.ones(15), num_iterations=6, key=new_key()
    )
    compressed = np.asarray(krylov.basis) @ matrix @ np.asarray(krylov.basis).T
    scale = max(np.abs(krylov.diagonal).max(), np.abs(krylov.off_diagonal).max())
    # The norm of the last remainder enters the scale too.
    image = matrix @ np.asarray(krylov.basis[-1])
    rest = image - np.asarray(krylov.basis).T @ (np.asarray(krylov.basis) @ image)
    scale = max(scale, np.linalg.norm(rest))
    expected = np.abs(np.triu(compressed - compressed.T, 1)).max() / scale
    np.testing.assert_allclose(krylov.asymmetry, expected, rtol=1e-10)


def breaks_at(limit, tree):
    """The identity on two leaves, until an entry of the second is large."""
    bad = jnp.max(jnp.abs(tree["b"])) > limit
    scale = jnp.arange(1.0, 7.0).reshape(2, 3)
    return {
        "a": 2 * tree["a"],
        "b": jnp.where(bad, jnp.inf, scale) * tree["b"],
    }


@pytest.mark.parametrize("kind", ["full", "none"])
def test_a_product_that_is_not_finite_is_found(kind):
    like = {"a": jnp.zeros(4), "b": jnp.zeros((2, 3))}
    start = {"a": jnp.ones(4), "b": jnp.zeros((2, 3)).at[1, 1].set(0.1)}

    def find(limit):
        operator = linalg.function_operator(
            breaks_at, jnp.array(limit), structure=like, tags=lx.symmetric_tag
        )
        return linalg.top_eigenpairs(
            operator,
            key=new_key(),
            start=start,
            num_iterations=3,
            reorthogonalise=kind,
        )

    # The second Lanczos vector is the first one's part in `b`, nearly of length 1.
    broken = find(0.5)
    assert (broken.nonfinite_step, broken.nonfinite_leaf) == (1, 1)
    paths = jax.tree_util.tree_leaves_with_path(like)
    assert jax.tree_util.keystr(paths[int(broken.nonfinite_leaf)][0]) == "['b']"
    assert not broken.converged[0]
    assert np.isnan(broken.values[0])
    fine = find(2.0)
    assert (fine.nonfinite_step, fine.nonfinite_leaf) == (-1, -1)
    np.testing.assert_allclose(fine.values, [5], rtol=1e-5)


def test_two_passes_cost_one_trace_and_twice_the_products():
    count = traces = 0

    def counted(_):
        nonlocal count
        count += 1

    def product(matrix, vector):
        nonlocal traces
        traces += 1
        jax.debug.callback(counted, vector[0])
        return matrix @ vector

    def measure(seed, kind):
        nonlocal count
        count = 0
        values = np.random.default_rng(seed).normal(size=20)
        operator = linalg.function_operator(
            product,
            jnp.asarray(rotated(values), jnp.float32),
            structure=jnp.zeros(20),
            tags=lx.symmetric_tag,
        )
        found = linalg.top_eigenpairs(
            operator, num=2, key=new_key(), num_iterations=10, reorthogonalise=kind
        )
        jax.block_until_ready(found)
        jax.effects_barrier()
        return count

    assert measure(0, "none") == 2 * 10 + 2
    assert measure(0, "full") == 10 + 2
    before = traces
    assert measure(1, "none") == 2 * 10 + 2
    assert traces == before


@pytest.mark.parametrize(
    ("kind", "num_iterations", "most"), [("full", 60, 1.2 * 60), ("none", 44, 8.5)]
)
def test_memory_is_that_of_the_stored_vectors(kind, num_iterations, most):
    p = 100_000
    operator = linalg.function_operator(
        jnp.multiply, jnp.zeros(p), structure=jnp.zeros(p), tags=lx.symmetric_tag
    )

    def find(operator, key):
        return linalg.top_eigenpairs(
            operator, key=key, num_iterations=num_iterations, reorthogonalise=kind
        ).values

    compiled = jax.jit(find).lower(operator, new_key()).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes / (4 * p) < most


UNTAGGED = lx.MatrixLinearOperator(jnp.eye(4))


def test_long_vectors_in_single_precision():
    """A product of the basis with a vector that adds up naively is off by 4e-4.

    Rounding of sums over so many entries may reach ``eps sqrt(p)``, 1e-4.
    """
    eigenvalues = jnp.concatenate([jnp.array([10.0]), jnp.linspace(0, 1, 999_999)])
    operator = linalg.function_operator(
        jnp.multiply, eigenvalues, structure=eigenvalues, tags=lx.symmetric_tag
    )
    top = linalg.top_eigenpairs(operator, key=new_key(), num_iterations=12)
    np.testing.assert_allclose(top.values[0], 10, rtol=5e-5)
    assert top.asymmetry < 5e-5


@pytest.mark.usefixtures("user_land")
def test_several_pairs_of_half_precision_need_reorthogonalisation():
    diagonal = jnp.array([3.0, 2.0, 1.0], jnp.bfloat16)
    operator = linalg.function_operator(
        jnp.multiply, diagonal, structure=diagonal, tags=lx.symmetric_tag
    )
    find = lambda num: linalg.top_eigenpairs(
        operator, key=new_key(), num=num, reorthogonalise="none"
    )
    np.testing.assert_allclose(find(1).values, [3], rtol=0.02)
    with pytest.raises(ValueError, match="`reorthogonalise` must be 'full' for 2"):
        find(2)


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    "routine",
    [
        linalg.top_eigenpairs,
        linalg.bottom_eigenpairs,
        linalg.spectral_density,
        linalg.log_determinant,
        lambda operator, key: linalg.effective_dimension(operator, 1.0, key=key),
    ],
)
def test_an_operator_not_known_to_be_symmetric_is_refused(routine):
    message = r"`operator` must be symmetric, but is a Matrix.*lineax\.symmetric_tag"
    with pytest.raises(ValueError, match=message):
        routine(UNTAGGED, key=new_key())
    tagged = lx.TaggedLinearOperator(UNTAGGED, lx.symmetric_tag)
    assert routine(tagged, key=new_key()) is not None


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 5}, "`num` must be between 1 and the operator's dimension 4, but"),
        (
            {"num": 2, "num_iterations": 1},
            r"`num_iterations` must be between `num` \(2",
        ),
        ({"reorthogonalise": "half"}, "`reorthogonalise` must be .* but was 'half'"),
        ({"tolerance": -1.0}, "`tolerance` must be a finite number, at least 0"),
        ({"key": 0}, "`key` must be one typed random key, but is 0"),
    ],
)
def test_bad_options(options, message):
    options = {"key": new_key()} | options
    with pytest.raises(ValueError, match=message):
        linalg.bottom_eigenpairs(matrix_operator(np.eye(4)), **options)
