"""Topological bounds: never below the exact Rademacher complexity of a small set."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree

from jaxtheory.bounds import finite_set, topological
from jaxtheory.bounds._topological import set_gap
from jaxtheory.bounds._trajectory_geometry import (
    covering_gap,
    e_alpha,
    loss_distances,
    positive_magnitude,
    tree_lengths,
)
from jaxtheory.dynamics.topology import magnitude

NUM = 12  # examples: all 4,096 sign patterns can be gone through
SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=NUM)))
SHARED: Any = dict(lipschitz=1.0, num_examples=NUM, loss_bound=1.0)


def point_sets():
    """Losses ``[r, 12]`` in [0, 1] of clouds, corners, clusters, walks and segments."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        r = int(rng.integers(2, 40))
        width = 10 ** rng.uniform(-3, 0)
        yield rng.random((r, NUM))
        yield rng.integers(0, 2, (r, NUM)).astype(float)
        yield np.clip(0.5 + width * rng.normal(size=(r, NUM)), 0, 1)
        steps = rng.normal(size=(r, NUM)) * width / 3
        yield np.clip(0.5 + np.cumsum(steps, axis=0), 0, 1)
        yield np.linspace(0, width, r)[:, None] * rng.integers(0, 2, NUM)[None]


def rademacher(losses):
    """The empirical Rademacher complexity, exactly."""
    return (SIGNS @ losses.T / NUM).max(axis=1).mean()


@pytest.fixture(scope="module")
def sets():
    """Distances of each set and its exact complexity."""
    return [(loss_distances(a), rademacher(a)) for a in point_sets()]


@pytest.mark.parametrize("constants", ["derived", "published"])
@pytest.mark.parametrize(
    ("complexity", "alpha"),
    [("e_alpha", 1.0), ("e_alpha", 0.4), ("positive_magnitude", 1.0)],
)
def test_is_above_twice_the_rademacher_complexity(sets, complexity, alpha, constants):
    ratios = []
    for distances, exact in sets:
        gap = set_gap(
            distances,
            complexity=complexity,
            alpha=alpha,
            constants=constants,
            **SHARED,
        )
        assert gap >= 2 * exact - 1e-12
        if exact > 1e-6:
            ratios.append(gap / (2 * exact))
    # Half of each derived bound is wrong for some of the sets.
    assert constants == "published" or min(ratios) < 2


@pytest.mark.parametrize("complexity", ["e_alpha", "positive_magnitude"])
def test_holds_for_simulated_data(complexity: Any):
    # Thresholds on uniform inputs with coin flips for labels: every risk is 1/2. With a
    # probability the bound is `topological`'s, of the whole set's largest gap.
    n, delta, rng = 100, 0.05, np.random.default_rng(5)
    thresholds = np.linspace(0.45, 0.55, 30)
    gaps, limits, likely = [], [], []
    for _ in range(300):
        x, y = rng.random(n), rng.integers(0, 2, n)
        losses = ((x[None] > thresholds[:, None]) != y[None]).astype(float)
        shared: Any = dict(loss_bound=1.0, complexity=complexity)
        gaps.append(0.5 - losses.mean(axis=1).min())
        limits.append(topological(losses, **shared).complexity)
        likely.append(topological(losses, delta=delta, **shared).complexity)
    assert np.mean(gaps) < np.mean(limits)
    assert np.mean(np.array(gaps) > np.array(likely)) <= delta
    # And not because they are far above: two fifths of the bound fail.
    assert np.mean(np.array(gaps) > 0.4 * np.array(limits)) > delta


def test_alpha_above_one_has_no_such_bound():
    # A fine path from end to end: E_2 is small, the complexity is not.
    ends = np.array([np.zeros(NUM), np.ones(NUM)])
    path = np.linspace(0, 1, 400)[:, None] * ends[1][None]
    gap = covering_gap(
        e_alpha(loss_distances(path), 2.0), num_points=400, alpha=2.0, **SHARED
    )
    assert gap < 2 * rademacher(path)
    with pytest.raises(ValueError, match="`alpha` must be in"):
        topological(path, loss_bound=1.0, alpha=2.0)


def test_tree_and_magnitude_match_other_programs():
    rng = np.random.default_rng(1)
    losses = rng.random((60, 9))
    distances = np.abs(losses[:, None] - losses[None]).mean(axis=-1)
    np.testing.assert_allclose(loss_distances(losses), distances, rtol=1e-12)
    tree = np.sort(minimum_spanning_tree(distances).data)
    np.testing.assert_allclose(np.sort(tree_lengths(distances)), tree, rtol=1e-12)
    for scale in (0.5, 5.0, 50.0):
        exact = magnitude(distances, scales=[scale]).positive_magnitude[0]
        assert 1 <= positive_magnitude(distances, scale) <= exact * (1 + 1e-9)
    # Equidistant points have no negative weight: the two agree.
    equal = 0.3 * (1 - np.eye(7))
    np.testing.assert_allclose(
        positive_magnitude(equal, 2.0), 7 / (1 + 6 * np.exp(-0.6)), rtol=1e-12
    )


def test_magnitude_of_a_singular_kernel_is_still_a_bound():
    # Points 1e-17 apart: the kernel is all ones to double precision.
    distances = 1e-17 * np.abs(np.subtract.outer(np.arange(50), np.arange(50)))
    assert positive_magnitude(distances, 1.0) == pytest.approx(1.0, rel=1e-12)


def test_published_form_and_when_it_wins():
    # r = 5,000, n = 50,000, alpha = 1: it wins only if 1 + K E_1 < r^(1/16) = 1.70.
    constant, n = 2 * (2 * np.sqrt(50_000)), 50_000
    assert round(5000 ** (1 / 16), 2) == 1.70
    e_1 = (5000 ** (1 / 16) - 1) / constant
    assert 7e-4 < e_1 < 8e-4
    logarithm = 2 * np.sqrt(2 * np.log1p(constant * e_1) / n)
    np.testing.assert_allclose(logarithm, np.sqrt(np.log(5000) / (2 * n)), rtol=1e-12)
    line = np.array([[0.0, e_1], [e_1, 0.0]])
    gap = set_gap(
        line,
        complexity="e_alpha",
        alpha=1.0,
        constants="published",
        lipschitz=1.0,
        num_examples=n,
        loss_bound=1.0,
    )
    np.testing.assert_allclose(gap, logarithm + 2 / np.sqrt(n), rtol=1e-12)


@pytest.mark.parametrize("complexity", ["e_alpha", "positive_magnitude"])
def test_is_the_smaller_one_and_says_which(complexity: Any):
    rng = np.random.default_rng(2)
    wide = rng.random((30, 200))
    narrow = 0.5 + 1e-4 * wide
    for losses, words in ((wide, "at most the finite"), (narrow, "at most the topo")):
        for delta in (None, 0.05):
            bound = topological(
                losses, loss_bound=1.0, complexity=complexity, delta=delta
            )
            counted = finite_set(losses, loss_bound=1.0, delta=delta)
            assert not bound.certificate
            assert any("violated: " in text for text in bound.assumptions)
            # With a probability half of delta is not the finite set's.
            limit = counted.complexity if delta is None else counted.complexity * 1.1
            assert bound.complexity <= limit
            if delta is None:
                assert any(words in text for text in bound.assumptions)
    assert bound.value == pytest.approx(narrow[-1].mean() + bound.complexity)


@pytest.mark.parametrize("complexity", ["e_alpha", "positive_magnitude"])
@pytest.mark.parametrize("constants", ["derived", "published"])
def test_scales_with_the_loss_and_shrinks_with_the_examples(complexity, constants):
    walk = np.cumsum(np.random.default_rng(3).random((50, 30)), axis=0) / 100
    shared: Any = dict(
        complexity=complexity, alpha=1.0, constants=constants, lipschitz=1.0
    )
    gap = lambda losses, n, largest: set_gap(
        loss_distances(losses), num_examples=n, loss_bound=largest, **shared
    )
    if complexity == "e_alpha" or constants == "derived":
        doubled = gap(2 * walk, 1000, 2.0)
        np.testing.assert_allclose(doubled, 2 * gap(walk, 1000, 1.0), rtol=1e-10)
    assert gap(walk, 1000, 1.0) > gap(walk, 4000, 1.0)
    assert gap(walk, 1000, 1.0) >= gap(walk[::7], 1000, 1.0)


def test_other_distances_need_their_constant(user_land):
    rng = np.random.default_rng(4)
    losses = 0.5 + 0.01 * rng.random((20, 50))
    own = loss_distances(losses)
    same = topological(losses, loss_bound=1.0, distances=own / 2, lipschitz=2.0)
    assert same.complexity == pytest.approx(
        topological(losses, loss_bound=1.0).complexity, rel=1e-12
    )
    assert any("taken on trust: the loss is 2-Lip" in a for a in same.assumptions)
    wrong: Any = dict(
        together=dict(distances=own),
        contradicted=dict(distances=own / 3, lipschitz=2.0),
        shape=dict(distances=own[:5, :5], lipschitz=1.0),
        lopsided=dict(distances=np.triu(own), lipschitz=1.0),
        positive=dict(distances=own, lipschitz=0.0),
    )
    messages = dict(
        together="`distances` and `lipschitz` must be given together",
        contradicted="`lipschitz` must be a Lipschitz constant of the loss",
        shape="`distances` must have one row and column for each of the 20",
        lopsided="`distances` must be symmetric, finite",
        positive="`lipschitz` must be positive",
    )
    for name, arguments in wrong.items():
        with pytest.raises(ValueError, match=messages[name]):
            topological(losses, loss_bound=1.0, **arguments)


def test_degenerate_sets():
    # One record, and records that never move: nothing but the mean loss is left.
    for losses in (np.full((1, 10), 0.25), np.full((6, 10), 0.25)):
        for complexity in ("e_alpha", "positive_magnitude"):
            bound = topological(losses, loss_bound=1.0, complexity=complexity)
            assert (bound.value, bound.complexity) == (0.25, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(complexity="betti"), "`complexity` must be"),
        (dict(constants="exact"), "`constants` must be"),
        (dict(alpha=0.0), "`alpha` must be in"),
        (dict(alpha=np.nan), "`alpha` must be in"),
        (dict(delta=1.0), "`delta` must be strictly between"),
        (dict(loss_bound=0.4), "`losses` must lie between 0 and"),
    ],
)
def test_bad_input(user_land, arguments, message):
    shared: Any = dict(loss_bound=1.0) | arguments
    with pytest.raises(ValueError, match=message):
        topological(np.full((3, 4), 0.5), **shared)
