"""Measures against gaps: every figure against double loops over networks."""

import itertools
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from jaxtheory.bounds import evaluate as ev

NAN = float("nan")
CELLS = {
    "rate": [0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3],
    "width": [8, 8, 16, 16, 8, 8, 16, 8, 8, 16, 16],
    "optimizer": [*["sgd", "adam"] * 3, "sgd", *["sgd", "adam"] * 2],
}  # one cell of the 3 x 2 x 2 is missing


@pytest.fixture(scope="module")
def population():
    """A measure and a gap with ties, failed runs and a missing cell."""
    draw = np.random.default_rng(0)
    hidden = draw.standard_normal((11, 1)) + draw.standard_normal((11, 3))
    measure = np.round(hidden + draw.standard_normal((11, 3)), 1)
    gap = np.round(hidden, 1)
    measure[3, 1] = gap[5, 2] = NAN
    gap[8] = NAN  # a cell in which every run failed
    return measure, gap


def tau(left, right):
    """SciPy's, which is tau-b too."""
    found: Any = scipy.stats.kendalltau(np.ravel(left), np.ravel(right))
    return found.statistic


def networks(measure, gap):
    """Each network that has both values: its cell, measure and gap."""
    return [
        (c, measure[c, s], gap[c, s])
        for c, s in np.ndindex(gap.shape)
        if not np.isnan(measure[c, s] + gap[c, s])
    ]


def setting(cell):
    return [values[cell] for values in CELLS.values()]


def differing(a, b):
    """Places of the hyperparameters in which two cells differ."""
    pairs = zip(setting(a), setting(b), strict=True)
    return [i for i, (one, other) in enumerate(pairs) if one != other]


def tau_of_pairs(pairs):
    """Tau-b of pairs of networks, one by one."""
    agreement = left = right = 0
    for (_, m, g), (_, n, h) in pairs:
        agreement += np.sign(m - n) * np.sign(g - h)
        left, right = left + (m != n), right + (g != h)
    return agreement / np.sqrt(left * right) if left * right else NAN


def test_kendall_is_scipys_and_counts_pairs(population):
    measure, gap = population
    found = ev.kendall(measure, gap)
    rows = networks(measure, gap)
    assert found.tau == pytest.approx(tau(*zip(*[r[1:] for r in rows], strict=True)))
    pairs = list(itertools.combinations(rows, 2))
    tied = sum(m == n or g == h for (_, m, g), (_, n, h) in pairs)
    assert found[1:] == (len(pairs), tied, gap.size - len(rows))
    assert tied > 0
    assert found.num_left_out == 5


def test_masks_and_resamples_are_loops_over_pairs(population):
    measure, gap = population
    sums = ev.pair_sums(measure, gap)
    masks = ev.differ_in_one(CELLS)
    pairs = list(itertools.combinations(networks(measure, gap), 2))
    for place, mask in enumerate(masks):
        chosen = [p for p in pairs if differing(p[0][0], p[1][0]) == [place]]
        assert ev.tau_b(sums, mask) == pytest.approx(tau_of_pairs(chosen), rel=1e-12)
    counts = np.random.default_rng(1).multinomial(11, np.full(11, 1 / 11), size=4)
    for value, count in zip(
        ev.resampled_tau(sums, counts.astype(float)), counts, strict=True
    ):
        rows = np.repeat(np.arange(11), count)
        drawn = networks(measure[rows], gap[rows])
        assert value == pytest.approx(tau(*zip(*[r[1:] for r in drawn], strict=True)))


def test_granulated_is_the_mean_over_lines(population):
    measure, gap = population
    found = ev.granulated_kendall(measure, gap, CELLS)
    rows = networks(measure, gap)
    psi = []
    for place in range(3):
        lines = {}
        for pair in itertools.combinations(rows, 2):
            if differing(pair[0][0], pair[1][0]) == [place]:
                rest = setting(pair[0][0])
                del rest[place]
                lines.setdefault(tuple(rest), []).append(pair)
        taus = [tau_of_pairs(pairs) for pairs in lines.values()]
        psi.append(np.nanmean(taus))
        assert found.num_lines[place] == np.sum(~np.isnan(taus))
        assert found.num_pairs[place] == sum(map(len, lines.values()))
        full = {0: 4 * 3, 1: 6 * 1, 2: 6 * 1}[place] * 9
        assert found.num_left_out[place] == full - found.num_pairs[place] > 0
    np.testing.assert_allclose(found.by_hyperparameter, psi, rtol=1e-12)
    assert found.value == pytest.approx(np.mean(psi), rel=1e-12)


def test_a_failed_run_takes_only_its_pairs_from_the_granulated_tau():
    cells = {"rate": [1, 1, 2, 2], "width": [8, 16, 8, 16]}
    gap = np.array([[1.0], [2.0], [3.0], [4.0]])
    whole = ev.granulated_kendall(gap, gap, cells)
    assert whole.value == 1.0
    assert whole.num_left_out.tolist() == [0, 0]
    broken = np.where(gap == 4.0, NAN, gap)
    found = ev.granulated_kendall(-broken, gap, cells)
    assert found.value == -1.0
    assert found.num_lines.tolist() == [1, 1]
    assert found.num_undefined.tolist() == [1, 1]
    assert found.num_left_out.tolist() == [1, 1]
    constant = ev.granulated_kendall(np.array([[1.0], [2], [1], [2]]), gap, cells)
    assert np.isnan(constant.by_hyperparameter[0])
    assert constant.value == constant.by_hyperparameter[1] == 1.0
    assert constant.num_undefined.tolist() == [2, 0]


def entropy(counts):
    share = np.array([*counts.values()]) / sum(counts.values())
    return -np.sum(share * np.log(share))


def test_conditional_information_is_that_of_entropies(population):
    measure, gap = population
    found = ev.conditional_mutual_information(measure, gap, CELLS)
    pairs = [
        (a, b)
        for a, b in itertools.permutations(networks(measure, gap), 2)
        if a[0] != b[0] and a[2] != b[2]
    ]
    assert found.num_pairs == len(pairs) / 2
    assert found.num_left_out == 55 * 9 - len(pairs) // 2
    values = []
    for subset in found.subsets:
        given = [
            tuple(CELLS[name][n[0]] for name in subset for n in pair) for pair in pairs
        ]
        mu = [np.sign(a[1] - b[1]) for a, b in pairs]
        g = [np.sign(a[2] - b[2]) for a, b in pairs]
        h = lambda *columns: entropy(Counter(zip(*columns, strict=True)))
        bottom = h(g, given) - h(given)
        values.append((h(mu, given) - h(mu, g, given) + bottom - 0.0) / bottom)
    np.testing.assert_allclose(found.by_subset, values, rtol=1e-10)
    assert len(found.subsets) == 1 + 3 + 3
    assert found.value == found.by_subset.min()
    assert found.given == found.subsets[int(np.argmin(values))]


def test_conditional_information_at_its_ends():
    cells = {"rate": [1, 1, 2, 2, 3, 3], "width": [8, 16] * 3}
    gap = np.arange(12.0).reshape(6, 2)
    same = ev.conditional_mutual_information(np.exp(gap), gap, cells)
    assert same.value == pytest.approx(1.0, abs=1e-12)
    assert ev.conditional_mutual_information(-gap, gap, cells).value == same.value
    assert ev.conditional_mutual_information(0 * gap, gap, cells).value < 1e-12
    # Given the rate, nothing is left of a measure that is the rate.
    rate = np.array(cells["rate"], float)[:, None] + 0 * gap
    found = ev.conditional_mutual_information(rate, gap, cells)
    assert found.value < 1e-12
    assert found.given == ("rate",)
    assert found.by_subset[0] > 0.5
    alone = ev.conditional_mutual_information(gap, gap, {"rate": range(6)})
    assert alone.subsets == ((),)


def test_sign_error_is_a_loop_over_environments(population):
    measure, gap = population
    found = ev.robust_sign_error(measure, gap, CELLS)
    rows = networks(measure, gap)
    errors = {}
    for a, b in itertools.combinations(rows, 2):
        if len(differing(a[0], b[0])) == 1 and a[2] != b[2]:
            wrong = (1 - np.sign(a[1] - b[1]) * np.sign(a[2] - b[2])) / 2
            errors.setdefault((a[0], b[0]), []).append(wrong)
    means = {cells: np.mean(wrong) for cells, wrong in errors.items()}
    assert {tuple(c) for c in found.cells.tolist()} == set(means)
    for cells, error in zip(found.cells.tolist(), found.errors, strict=True):
        assert error == pytest.approx(means[tuple(cells)], rel=1e-12)
    assert found.worst == pytest.approx(max(means.values()))
    assert found.mean == pytest.approx(np.mean([*means.values()]))
    for place in range(3):
        some = [e for cells, e in means.items() if differing(*cells) == [place]]
        assert found.worst_by_hyperparameter[place] == pytest.approx(max(some))
        assert found.mean_by_hyperparameter[place] == pytest.approx(np.mean(some))
    # 12 + 6 + 6 environments less those of the missing cell and of the failed one.
    assert len(found.errors) + found.num_left_out == 24 - 4
    assert len(found.errors) <= 16


def test_sign_error_weighs_gaps_that_the_test_examples_tell_apart():
    cells = {"rate": [1, 2]}
    gap = np.array([[0.10, 0.30], [0.11, 0.12]])
    measure = np.array([[1.0, 2.0], [3.0, 4.0]])  # greater in the second cell
    found = ev.robust_sign_error(measure, gap, cells, num_test=1000)
    weight = lambda d: max(max(1 - 2 * np.exp(-500 * d**2), 0) ** 2 - 0.5, 0)
    assert weight(0.02) == 0  # .10 is not told apart from .11 and .12
    assert weight(0.18) > 0.4
    assert found.errors.tolist() == pytest.approx([1.0])
    assert ev.robust_sign_error(measure, gap, cells).errors.tolist() == [0.5]
    few = ev.robust_sign_error(measure, gap, cells, num_test=1000, min_pairs=2.1)
    assert np.isnan(few.worst)
    assert few.num_left_out == 1
    assert np.isnan(few.worst_by_hyperparameter[0])
    gap[1] = 0.2, 0.37  # greater by .1 and .27, less by .1, greater by .07
    weights = [*map(weight, (0.1, 0.27, 0.1, 0.07))]
    assert 0 < weights[3] < weights[0] < 0.5
    mixed = ev.robust_sign_error(measure, gap, cells, num_test=1000)
    assert mixed.worst == pytest.approx(weights[2] / sum(weights))


def test_partial_tau_is_kendalls_formula(population):
    measure, gap = population
    third = np.add.outer(np.array(CELLS["rate"]), np.zeros(3))
    found = ev.partial_correlation(measure, gap, {"rate": CELLS["rate"]})
    known = ~np.isnan(measure + gap)
    x, y, z = measure[known], gap[known], third[known]
    xy, xz, yz = tau(x, y), tau(x, z), tau(y, z)
    exact = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert found.value == pytest.approx(exact, rel=1e-10)
    assert found.plain == pytest.approx(xy, rel=1e-10)
    assert found.unexplained_measure == pytest.approx(1 - xz**2)
    assert found.unexplained_gap == pytest.approx(1 - yz**2)
    assert (found.num_networks, found.num_left_out) == (known.sum(), 5)
    # The same covariate twice tells nothing more.
    twice = {"a": CELLS["rate"], "b": -third}
    assert ev.partial_correlation(measure, gap, twice).value == pytest.approx(exact)


@pytest.mark.parametrize("method", ["kendall", "spearman"])
def test_partial_correlation_given_several_is_the_inverse_matrix(population, method):
    measure, gap = population
    draw = np.random.default_rng(2)
    given = {"rate": CELLS["rate"], "noise": draw.standard_normal(gap.shape)}
    given["optimizer"] = CELLS["optimizer"]
    found = ev.partial_correlation(measure, gap, given, method=method)
    known = ~np.isnan(measure + gap)
    sgd = np.array([word == "sgd" for word in CELLS["optimizer"]], float)
    wide = [np.repeat(np.array(c)[:, None], 3, 1) for c in (CELLS["rate"], sgd)]
    columns = [a[known] for a in (measure, gap, wide[0], given["noise"], wide[1])]
    pair: Any = tau if method == "kendall" else None
    pair = pair or (lambda a, b: np.corrcoef(*map(scipy.stats.rankdata, (a, b)))[0, 1])
    precision = np.linalg.inv([[pair(a, b) for a in columns] for b in columns])
    exact = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    assert found.value == pytest.approx(exact, rel=1e-9)


def test_what_follows_from_the_covariate_has_no_partial_correlation(population):
    _, gap = population
    rate = np.add.outer(np.array(CELLS["rate"]), np.zeros(3))
    for method in ("kendall", "spearman"):
        found = ev.partial_correlation(rate**2, gap, {"rate": rate}, method=method)
        assert np.isnan(found.value)
        assert found.unexplained_measure < 1e-12
        assert not np.isnan(found.plain)
        constant = ev.partial_correlation(0 * gap, gap, {"rate": rate}, method=method)
        assert np.isnan(constant.value)


@pytest.mark.parametrize("over", ["cells", "seeds"])
def test_bootstrap_gives_the_value_and_its_spread(population, over):
    measure, gap = population
    given = {"rate": CELLS["rate"]}
    draw = lambda **more: ev.bootstrap(
        measure, gap, over=over, num_resamples=400, key=jax.random.key(0), **more
    )
    found = draw()
    assert found.value == pytest.approx(ev.kendall(measure, gap).tau, rel=1e-12)
    assert found.low < found.value < found.high
    kept = found.samples[~np.isnan(found.samples)]
    assert found.standard_error == pytest.approx(np.std(kept, ddof=1))
    assert found.num_undefined == 400 - len(kept)
    partial = draw(given=given)
    exact = ev.partial_correlation(measure, gap, given).value
    assert partial.value == pytest.approx(exact, rel=1e-10)
    np.testing.assert_array_equal(draw().samples, found.samples)


def test_bootstrap_over_seeds_keeps_every_cell():
    draw = np.random.default_rng(0)
    gap = np.arange(8.0)[:, None] + 0.1 * draw.random((8, 4))  # cells never overlap
    measure = np.arange(8.0)[:, None] + 0.1 * draw.random((8, 4))
    found = ev.bootstrap(measure, gap, over="seeds", key=jax.random.key(0))
    assert found.low > 0.8  # pairs within a cell alone vary
    cells = ev.bootstrap(measure, 0 * gap, over="cells", key=jax.random.key(0))
    assert np.isnan(cells.value)
    assert cells.num_undefined == 1000
    assert np.isnan(cells.low)
    one = ev.bootstrap(gap[:, :1], gap[:, :1], over="seeds", key=jax.random.key(1))
    assert one.standard_error == 0.0  # one seed: nothing to draw


def test_interval_covers_the_truth():
    """Of 200 populations of 30 cells the 95 % interval holds tau in 170 or more."""
    draw = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), 200)
    covered = 0
    truth = 2 / np.pi * np.arcsin(0.5)
    for key in keys:
        hidden = draw.standard_normal((30, 1))
        measure, gap = (hidden + draw.standard_normal((30, 1)) for _ in range(2))
        found = ev.bootstrap(measure, gap, num_resamples=200, key=key)
        covered += found.low <= truth <= found.high
    assert covered >= 170


def test_ceiling_is_the_mean_over_pairs_of_seeds():
    draw = np.random.default_rng(0)
    gap = np.arange(20.0)[:, None] + 5 * draw.standard_normal((20, 3))
    half = np.arange(20) < 10
    found = ev.noise_ceiling(gap, half[:, None] == half)
    pairs = list(itertools.combinations(range(3), 2))
    assert found.between_seeds == pytest.approx(
        np.mean([tau(gap[:, a], gap[:, b]) for a, b in pairs])
    )
    rest = [tau(gap[:, a], np.delete(gap, a, 1).mean(1)) for a in range(3)]
    assert found.from_other_seeds == pytest.approx(np.mean(rest))
    inside = [tau(gap[h, a], gap[h, b]) for a, b in pairs for h in (half, ~half)]
    assert found.within == pytest.approx(np.mean(inside))
    assert found.num_seed_pairs == 3
    gap[:, 0] = NAN
    broken = ev.noise_ceiling(gap)
    assert broken.between_seeds == pytest.approx(tau(gap[:, 1], gap[:, 2]))
    assert broken.num_seed_pairs == 1
    assert np.isnan(ev.noise_ceiling(gap[:, :1]).from_other_seeds)


def test_expected_gap_reaches_its_ceiling():
    draw = np.random.default_rng(0)
    cell = draw.standard_normal((400, 1))
    gap = cell + 1.2 * draw.standard_normal((400, 4))
    found = ev.noise_ceiling(gap)
    taus = [tau(cell, gap[:, seed]) for seed in range(4)]
    # A tau of 400 pairs has deviation .03, and four of one set of cells less.
    assert abs(np.mean(taus) - found.of_expected_gap) < 0.04
    assert found.between_seeds + 0.1 < found.of_expected_gap
    assert found.between_seeds < found.from_other_seeds < found.of_expected_gap


@pytest.mark.parametrize("missing", [False, True])
def test_band_is_the_largest_tau_of_permuted_gaps(missing):
    draw = np.random.default_rng(0)
    gap, one, two = draw.standard_normal((3, 12, 2))
    if missing:
        gap[3], one[4, 1], two[:2] = NAN, NAN, NAN
    measures = {"one": one, "two": two, "constant": 0 * gap}
    found = ev.permutation_band(
        measures, gap, num_permutations=5, key=jax.random.key(3)
    )
    same = np.random.default_rng(np.ravel(jax.random.key_data(jax.random.key(3))))
    for largest in found.largest:
        moved = gap[same.permutation(12)]
        taus = [ev.kendall(values, moved).tau for values in (one, two)]
        assert largest == pytest.approx(np.max(np.abs(taus)), rel=1e-6)
    assert found.band == np.quantile(found.largest, 0.95)
