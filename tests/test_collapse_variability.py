"""NC1, CDNV and VCI against dense covariances in NumPy, float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import (
    accumulator,
    cdnv,
    statistics,
    variability_collapse_index,
)

# Labels, number of classes, dimension. The second has an absent class and one of a
# single example, the third more classes than dimensions.
CASES = {
    "balanced": (np.arange(40) % 4, 4, 6),
    "imbalanced": (np.repeat([0, 2, 3, 4], [22, 12, 5, 1]), 5, 6),
    "more_classes": (np.arange(40) % 8, 8, 3),
}


def cloud(case, *, noise=0.4, offset=2.0):
    labels, num_classes, dim = CASES[case]
    rng = np.random.default_rng(5)
    means = rng.normal(size=(num_classes, dim))
    scales = noise * (1 + np.arange(dim) / dim)
    features = means[labels] + scales * rng.normal(size=(len(labels), dim)) + offset
    return features.astype(np.float32), labels


def scatters(features, labels):
    """Classes, means, class covariances, Sigma_W and both Sigma_B."""
    h, classes = np.asarray(features, np.float64), np.unique(labels)
    means = np.array([h[labels == c].mean(0) for c in classes])
    covs = [np.cov(h[labels == c].T, bias=True, ddof=0) for c in classes]
    shares = np.array([(labels == c).mean() for c in classes])
    within = sum(s * c for s, c in zip(shares, covs, strict=True))
    equal = (means - means.mean(0)).T @ (means - means.mean(0)) / len(classes)
    by_count = (means - h.mean(0)).T @ np.diag(shares) @ (means - h.mean(0))
    return classes, means, covs, within, equal, by_count


@pytest.mark.parametrize("case", CASES)
def test_nc1_in_all_conventions(case):
    features, labels = cloud(case)
    *_, within, equal, by_count = scatters(features, labels)
    classes = len(np.unique(labels))
    h, y = jnp.asarray(features), jnp.asarray(labels)
    trace = 0.0
    for word, between in [("equal", equal), ("counts", by_count)]:
        found = statistics(h, y, class_weights=word, num_classes=CASES[case][1])
        trace = np.trace(within @ np.linalg.pinv(between, rcond=1e-10))
        np.testing.assert_allclose(found.nc1, trace / classes, rtol=2e-5)
        ratio = np.trace(within) / np.trace(between)
        np.testing.assert_allclose(found.nc1_ratio, ratio, rtol=1e-5)
    if case != "imbalanced":
        return
    plain = statistics(
        h,
        y,
        class_weights="counts",
        normalize_by_classes=False,
        num_classes=CASES[case][1],
    )
    np.testing.assert_allclose(plain.nc1, trace, rtol=2e-5)


def test_no_sum_overwrites_an_example():
    """Ten orthonormal examples a class: (n-1) K/(K-1) = 13.5.

    Sums that begin in the memory of each class's first example give 12.15.
    """
    features, labels = np.eye(30, dtype=np.float32), np.arange(30) % 3
    found = statistics(jnp.asarray(features), jnp.asarray(labels))
    np.testing.assert_allclose(found.nc1_ratio, 13.5, rtol=1e-5)
    acc = accumulator.init(3, 30)
    for rows in np.split(np.arange(30), 3):
        batch = jnp.asarray(features[rows])
        acc = accumulator.update(acc, batch, jnp.asarray(labels[rows]))
        np.testing.assert_array_equal(batch, features[rows])
    summary = accumulator.finalize(acc)
    found = summary.variances.mean() * summary.unit**2
    np.testing.assert_allclose(found, 0.9, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_cdnv_matrices_against_loops(case):
    features, labels = cloud(case)
    classes, means, covs, *_ = scatters(features, labels)
    num_classes = CASES[case][1]
    matrix = np.full((3, num_classes, num_classes), np.nan)
    directional = np.full((num_classes, num_classes), np.nan)
    for a, i in enumerate(classes):
        for b, j in enumerate(classes):
            if i != j:
                gap = means[b] - means[a]
                square, vi, vj = gap @ gap, np.trace(covs[a]), np.trace(covs[b])
                pair = [(vi + vj) / 2, vi, vi + vj]
                matrix[:, i, j] = np.array(pair) / square
                directional[i, j] = gap @ covs[a] @ gap / square**2
    h, y = jnp.asarray(features), jnp.asarray(labels)
    words = ["average", "ordered", "sum"] if case == "imbalanced" else ["average"]
    found: Any = None
    for row, word in enumerate(words):
        found = cdnv(h, y, convention=word, num_classes=num_classes)
        np.testing.assert_allclose(found.matrix, matrix[row], rtol=1e-5)
        np.testing.assert_allclose(found.value, np.nanmean(matrix[row]), rtol=1e-5)
    np.testing.assert_allclose(found.directional_matrix, directional, 5e-5, 1e-7)
    np.testing.assert_allclose(found.directional, np.nanmean(directional), rtol=2e-5)
    record = statistics(h, y, cdnv=words[-1], num_classes=num_classes)
    np.testing.assert_allclose(record.cdnv, found.value, rtol=1e-6)
    np.testing.assert_allclose(record.directional_cdnv, found.directional, rtol=1e-6)


def test_cdnv_of_means_that_coincide_and_of_tiny_scales():
    features, labels = cloud("balanced")
    same = features.copy()
    same[labels == 3] = same[labels == 1]
    found = cdnv(jnp.asarray(same), jnp.asarray(labels))
    assert found.value == found.directional == jnp.inf
    infinite = np.isinf(np.asarray(found.matrix))
    assert np.argwhere(infinite).tolist() == [[1, 3], [3, 1]]
    small = cdnv(jnp.asarray(features * 2.0**-80), jnp.asarray(labels))
    whole = cdnv(jnp.asarray(features), jnp.asarray(labels))
    for a, b in zip(small, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_isotropic_gaussians_have_known_variances():
    """d=20, sigma=.1, gap 1: V = 2 d sigma^2 = .4 and directional sigma^2 = .01."""
    rng = np.random.default_rng(0)
    labels = np.arange(40_000) % 2
    features = 0.1 * rng.normal(size=(40_000, 20))
    features[labels == 1, 0] += 1
    h, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels)
    found = cdnv(h, y, convention="sum", batch_size=10_000)
    np.testing.assert_allclose(found.value, 0.4, rtol=0.02)
    np.testing.assert_allclose(found.directional, 0.01, rtol=0.03)


@pytest.mark.parametrize("case", CASES)
def test_variability_collapse_index(case):
    features, labels = cloud(case)
    *_, within, _, between = scatters(features, labels)
    h, y = jnp.asarray(features), jnp.asarray(labels)
    found = variability_collapse_index(h, y, num_classes=CASES[case][1])
    rank = min(features.shape[1], len(np.unique(labels)) - 1)
    score = np.trace(np.linalg.inv(within + between) @ between)
    np.testing.assert_allclose(found, 1 - score / rank, atol=1e-5)
    # No linear map changes it; the ratio of traces does.
    rng = np.random.default_rng(6)
    mixed = features @ rng.normal(size=(features.shape[1],) * 2).astype(np.float32)
    other = jnp.asarray(mixed)
    again = variability_collapse_index(other, y, num_classes=CASES[case][1])
    np.testing.assert_allclose(again, found, atol=2e-4)


def test_the_index_is_the_error_of_a_linear_probe():
    features, labels = cloud("balanced")
    onehot = np.eye(4)[labels]
    inputs = np.concatenate([features, np.ones((40, 1))], axis=1).astype(np.float64)
    residual = onehot - inputs @ np.linalg.lstsq(inputs, onehot, rcond=None)[0]
    found = variability_collapse_index(jnp.asarray(features), jnp.asarray(labels))
    np.testing.assert_allclose(found * 3 / 4, (residual**2).sum(1).mean(), rtol=1e-5)


def test_index_without_full_rank():
    features, labels = cloud("balanced")
    found = variability_collapse_index(jnp.asarray(features), jnp.asarray(labels))
    # Constant and repeated features, as dead and tied units make them, change nothing.
    wide = np.concatenate([features, features[:, :2], np.full((40, 3), 7.0)], axis=1)
    wide = jnp.asarray(wide, jnp.float32)
    again = variability_collapse_index(wide, jnp.asarray(labels))
    np.testing.assert_allclose(again, found, atol=1e-5)
    constant = jnp.full((40, 6), 3.3)
    assert jnp.isnan(variability_collapse_index(constant, jnp.asarray(labels)))
    collapsed = jnp.eye(4, 6)[labels]
    index = variability_collapse_index(collapsed, jnp.asarray(labels))
    np.testing.assert_allclose(index, 0, atol=1e-6)


H: Any = jnp.ones((6, 4))
Y: Any = jnp.arange(6) % 3


@pytest.mark.parametrize("measure", [cdnv, variability_collapse_index])
def test_bad_input_names_the_fix(measure, user_land):
    with pytest.raises(ValueError, match=r"`features` must be a matrix"):
        measure(H[0], Y)
    with pytest.raises(ValueError, match=r"`labels` must be a vector.*argmax"):
        measure(H, jnp.eye(6, 3))
    with pytest.raises(ValueError, match=r"at least two classes"):
        measure(H, 0 * Y)
    with pytest.raises(ValueError, match=r"`labels` must lie in \[0, 2\)"):
        measure(H, Y, num_classes=2)


def test_an_unknown_convention_is_named(user_land):
    with pytest.raises(ValueError, match=r"`convention` must be one of.*'mean'"):
        cdnv(H, Y, convention="mean")
