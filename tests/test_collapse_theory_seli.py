"""Frames of the optimum against the N x N definition and published closed forms."""

import numpy as np
import pytest

from jaxtheory.collapse.theory import (
    general_orthogonal_frame,
    simplex_encoded_labels,
    simplex_frame,
)


def cosine(gram, i, j):
    return gram[i, j] / np.sqrt(gram[i, i] * gram[j, j])


def test_any_counts_match_the_definition_example_by_example():
    counts = [5, 1, 3, 2]
    labels = np.repeat(np.arange(4), counts)
    encoded = (np.eye(4)[labels] - 1 / 4).T

    def root(square):
        # Square roots of matrices here, singular vectors there.
        values, vectors = np.linalg.eigh(square)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    weight, features = root(encoded @ encoded.T), root(encoded.T @ encoded)
    average = np.eye(4)[labels] / np.asarray(counts)[labels, None]
    found = simplex_encoded_labels(counts)
    np.testing.assert_allclose(found.classifier_gram, weight, atol=1e-7)
    np.testing.assert_allclose(
        found.mean_gram, average.T @ features @ average, atol=1e-7
    )
    np.testing.assert_allclose(found.classifier_gram.sum(0), 0, atol=1e-14)
    np.testing.assert_allclose(found.mean_gram.sum(0), 0, atol=1e-14)


@pytest.mark.parametrize(("k", "ratio"), [(4, 10.0), (6, 3.0), (10, 100.0)])
def test_step_imbalance_has_a_closed_form(k, ratio):
    half = k // 2
    grams = simplex_encoded_labels([ratio] * half + [1] * half)
    root, q = np.sqrt(ratio), np.sqrt((ratio + 1) / 2)
    expected = np.sort([0, q, *[root] * (half - 1), *[1] * (half - 1)])
    values = np.linalg.eigvalsh(grams.classifier_gram)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    # The means have 1/sqrt(R) and 1/q where the classifier has sqrt(R) and q.
    for gram, r, s in [
        (grams.classifier_gram, root, q),
        (grams.mean_gram, 1 / root, 1 / q),
    ]:
        minority, majority = cosine(gram, k - 1, k - 2), cosine(gram, 0, 1)
        np.testing.assert_allclose(minority, (s - 2) / (s + k - 2), rtol=1e-12)
        np.testing.assert_allclose(
            majority, (s - 2 * r) / (s + (k - 2) * r), rtol=1e-12
        )
        lengths = ((1 - 2 / k) * r + s / k) / ((1 - 2 / k) + s / k)
        np.testing.assert_allclose(gram[0, 0] / gram[-1, -1], lengths, rtol=1e-12)


def test_published_numbers():
    weight, means = simplex_encoded_labels([10, 10, 1, 1])
    found = [
        cosine(weight, 2, 3),
        cosine(weight, 0, 1),
        weight[0, 0] / weight[3, 3],
        means[0, 0] / means[3, 3],
        cosine(means, 2, 3),
    ]
    expected = [0.07945, -0.45899, 1.99525, 0.43639, -0.64853]
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_equal_classes_are_a_simplex_frame():
    frame = simplex_frame(5)
    for gram in (*frame, *simplex_encoded_labels([7] * 5)):
        unit = gram / np.linalg.norm(gram)
        np.testing.assert_allclose(unit, (np.eye(5) - 0.2) / 2, atol=1e-14)


def test_no_other_separating_logits_are_shorter():
    # min ||W||^2 + ||H||^2 with W H = Z is twice the sum of singular values of Z.
    counts = np.array([6.0, 2, 1])
    grams = simplex_encoded_labels(counts)
    best = np.trace(grams.classifier_gram) + counts @ np.diag(grams.mean_gram)
    shortest = lambda logits: 2 * np.linalg.norm(logits * np.sqrt(counts), "nuc")
    encoded = np.eye(3) - 1 / 3
    np.testing.assert_allclose(shortest(encoded), best, rtol=1e-12)
    rng = np.random.default_rng(0)
    for size in np.geomspace(1e-3, 1, 20):
        slack = size * rng.uniform(size=(3, 3)) * (1 - np.eye(3))
        assert shortest(encoded - slack) > best


def test_orthogonal_frame_is_the_ridge_optimum():
    # Dang's setting: 400 examples, both decays 5e-4.
    counts = np.array([200, 100, 50, 50])
    weight, means = general_orthogonal_frame(counts, regularization=5e-4)
    np.testing.assert_allclose(
        np.diag(weight), [13.94214, 9.8, 6.87107, 6.87107], atol=5e-6
    )
    np.testing.assert_allclose(
        np.diag(means)[:3], [0.0697107, 0.098, 0.1374214], atol=5e-8
    )
    features = np.repeat(np.diag(np.sqrt(np.diag(means))), counts, axis=0).T
    rows, labels = np.sqrt(weight), np.repeat(np.eye(4), counts, axis=0).T
    error = (rows @ features - labels) / 400
    np.testing.assert_allclose(error @ features.T + 5e-4 * rows, 0, atol=1e-15)
    np.testing.assert_allclose(rows.T @ error + 5e-4 * features, 0, atol=1e-15)


def test_orthogonal_frame_drops_small_classes():
    threshold = lambda factor: factor * np.sqrt(4) / 44
    for factor, kept in [(0.98, True), (1.02, False)]:
        frame = general_orthogonal_frame([40, 4], regularization=threshold(factor))
        assert (frame.classifier_gram[1, 1] > 0) == kept


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simplex_encoded_labels([5]), r"`class_counts` must be.*\(1,\)"),
        (lambda: simplex_encoded_labels([5, 0]), r"`class_counts` must be positive"),
        (
            lambda: simplex_encoded_labels([5, np.inf]),
            r"`class_counts` must.*finite",
        ),
        (
            lambda: simplex_encoded_labels("ab"),  # pyright: ignore
            r"`class_counts` must be a vector",
        ),
        (
            lambda: general_orthogonal_frame([5, 2], regularization=-1.0),
            r"`regularization` must be a number >= 0",
        ),
        (lambda: simplex_frame(1), r"`num_classes` must be an integer of at least 2"),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
