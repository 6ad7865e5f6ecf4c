"""Variance over hyperparameters, the ledger on disk, the whole table, bad input."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.bounds import evaluate as ev

NAN = float("nan")
GRID = [*itertools.product([0.1, 0.2, 0.3], [8, 16], ["sgd", "adam"])]
NAMES = ("rate", "width", "optimizer")
CELLS = {name: np.array([c[i] for c in GRID]) for i, name in enumerate(NAMES)}


def gap_and_measures(seed=0):
    """A gap that follows rate and width, and measures that follow some of it."""
    draw = np.random.default_rng(seed)
    rate, width = (CELLS[n][:, None] for n in ("rate", "width"))
    noise = lambda: 0.2 * draw.standard_normal((12, 5))
    gap = 10 * rate + 0.1 * width + noise()
    measures = {
        "both": gap + noise(),
        "rate alone": rate + 0 * gap,
        "noise": noise(),
        "constant": 0 * gap,
        "failed": NAN * gap,
    }
    return gap, measures


def projection(columns, target):
    """Residual sum of squares by projecting out one column after the other."""
    basis = []
    for column in columns:
        rest = np.array(column, float)
        for unit in basis:
            rest -= (unit @ rest) * unit
        for unit in basis:
            rest -= (unit @ rest) * unit
        if rest @ rest > 1e-9:
            basis.append(rest / np.sqrt(rest @ rest))
    left = target - sum((unit @ target) * unit for unit in basis)
    return left @ left, len(basis)


def columns_of(term, rows):
    """Indicators of the combinations of levels of the term, a row a network."""
    labels = [tuple(CELLS[name][c] for name in term) for c in rows]
    return [[label == level for label in labels] for level in sorted(set(labels))]


@pytest.mark.parametrize("missing", [False, True])
def test_variance_is_that_of_least_squares_over_networks(missing):
    gap = gap_and_measures()[0]
    if missing:
        gap[4], gap[7, 1], gap[9, :3] = NAN, np.inf, NAN
    found = ev.variance_decomposition(gap, CELLS)
    rows = [c for c, s in np.ndindex(gap.shape) if np.isfinite(gap[c, s])]
    target = gap[np.isfinite(gap)] - np.mean(gap[np.isfinite(gap)])
    terms = [(n,) for n in NAMES] + [*itertools.combinations(NAMES, 2)]
    ones = [[1.0] * len(rows)]
    fit = lambda chosen: projection(
        [*ones, *(column for t in chosen for column in columns_of(t, rows))], target
    )
    for place, term in enumerate(terms):
        assert set(found.terms[place]) == set(term)
        others = [other for other in terms if not {*term} <= {*other}]
        (without, less), (within, more) = fit(others), fit([*others, term])
        assert found.degrees_of_freedom[place] == more - less
        assert found.sum_of_squares[place] == pytest.approx(without - within, abs=1e-10)
    model, rank = fit(terms)
    cells, number = projection(columns_of(NAMES, rows), target)
    assert found.sum_of_squares[-1] == pytest.approx(cells)
    assert found.sum_of_squares[-3] == pytest.approx(model - cells)
    assert found.degrees_of_freedom[-3] == number - rank
    assert found.degrees_of_freedom[-1] == len(rows) - number
    assert found.total == pytest.approx(target @ target)
    assert np.sum(found.sum_of_squares) == pytest.approx(found.total)
    assert found.balanced is not missing
    assert found.num_missing == 60 - len(rows)
    shared = found.fraction[-2]
    assert abs(shared) > 1e-4 if missing else abs(shared) < 1e-12


def test_balanced_main_effects_are_variances_of_means():
    gap = gap_and_measures()[0]
    found = ev.variance_decomposition(gap, CELLS)
    cube = gap.reshape(3, 2, 2, 5)
    assert found.fraction[0] == pytest.approx(cube.mean((1, 2, 3)).var() / cube.var())
    assert found.fraction[1] == pytest.approx(cube.mean((0, 2, 3)).var() / cube.var())
    assert found.fraction[-1] == pytest.approx(cube.var(axis=3).mean() / cube.var())
    assert np.sum(found.corrected) == pytest.approx(1.0)
    one_less = np.where(gap == gap[0, 0], NAN, gap)
    assert not ev.variance_decomposition(one_less, CELLS).balanced
    mains = ev.variance_decomposition(gap, CELLS, order=1)
    np.testing.assert_allclose(mains.fraction[:3], found.fraction[:3], rtol=1e-9)
    assert mains.fraction[3] == pytest.approx(found.fraction[3:7].sum())


def test_corrected_fractions_of_noise_are_zero_on_average():
    draw = np.random.default_rng(0)
    found = [
        ev.variance_decomposition(draw.standard_normal((12, 3)), CELLS)
        for _ in range(200)
    ]
    corrected = np.array([one.corrected for one in found])[:, :6]
    error = corrected.std(axis=0, ddof=1) / np.sqrt(200)
    assert np.all(np.abs(corrected.mean(axis=0)) < 4 * error)
    assert np.all(np.mean([one.fraction for one in found], axis=0)[:6] > 0.01)


def test_variance_of_what_cannot_be_told_apart():
    # Width follows the rate: neither adds to the other.
    found = ev.variance_decomposition(
        np.array([[1.0, 1.2], [3.0, 3.1]]), {"rate": [1, 2], "width": [8, 16]}
    )
    assert found.degrees_of_freedom.tolist() == [0, 0, 0, 0, 0, 2]
    assert np.isnan(found.sum_of_squares[:3]).all()
    assert not found.balanced
    assert found.fraction[-2] == pytest.approx(1 - found.fraction[-1])
    single = ev.variance_decomposition(np.array([[1.0], [2.0]]), {"rate": [1, 2]})
    assert single.fraction[0] == pytest.approx(1.0)
    assert np.isnan(single.corrected[0])
    for values in (np.full((12, 2), 0.1), np.full((12, 2), NAN)):
        nothing = ev.variance_decomposition(values, CELLS)
        assert np.isnan(nothing.fraction).all()
        assert np.isnan(nothing.corrected).all()


def test_ledger_reads_back_the_same(tmp_path):
    gap, measures = gap_and_measures()
    gap[2, 1], measures["both"][3, 4], measures["both"][0, 0] = NAN, NAN, np.inf
    measures["E_1 / length (losses)"] = gap / 3
    ev.to_csv(tmp_path / "x.csv", measures, gap, CELLS)
    found = ev.from_csv(tmp_path / "x.csv")
    assert list(found.measures) == list(measures)
    for name, table in measures.items():
        np.testing.assert_array_equal(found.measures[name], table)
    np.testing.assert_array_equal(found.gap, gap)
    assert list(found.hyperparameters) == list(NAMES)
    assert found.hyperparameters["width"].dtype.kind == "i"
    for name in NAMES:
        np.testing.assert_array_equal(found.hyperparameters[name], CELLS[name])


def test_ledger_of_another_writer(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(
        "hp.lr,hp.opt,is.fine,complexity.a,gen.gap\n"
        "0.1,sgd,yes,1,0.2\n0.2,sgd,no,2,0.3\n0.1,sgd,,3,\n"
    )
    found = ev.from_csv(path)
    np.testing.assert_array_equal(found.measures["a"], [[1, 3], [2, NAN]])
    np.testing.assert_array_equal(found.gap, [[0.2, NAN], [0.3, NAN]])
    assert found.hyperparameters["opt"].tolist() == ["sgd", "sgd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hp.a,gen.gap\n1,2\n", r"lacks `complexity\.` columns"),
        ("", "has 0 rows"),
        ("hp.a,complexity.b,gen.gap\n1,x,2\n", "`complexity.b` must hold numbers"),
        (
            "config_id,hp.a,complexity.b,gen.gap\n0,1,1,1\n0,2,1,1\n",
            "'0' has several",
        ),
        (
            "config_id,seed,hp.a,complexity.b,gen.gap\n0,0,1,1,1\n0,0,1,1,1\n",
            "1 repeat a cell and its `seed`",
        ),
    ],
)
def test_broken_ledgers_are_refused(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ev.from_csv(path)


@pytest.mark.parametrize("name", ["a,b", " a", "a\nb", ""])
def test_names_that_no_list_of_names_can_hold_are_refused(tmp_path, name):
    table = np.zeros((2, 1))
    with pytest.raises(ValueError, match="names of `measures` must be words without"):
        ev.to_csv(tmp_path / "x.csv", {name: table}, table, {"rate": [1, 2]})
    with pytest.raises(ValueError, match="`hyperparameters` must hold no empty words"):
        ev.to_csv(tmp_path / "x.csv", {"a": table}, table, {"optimizer": ["", "sgd"]})


@pytest.fixture(scope="module")
def evaluation():
    gap, measures = gap_and_measures()
    gap[2, 1] = NAN
    ledger = ev.Ledger(measures, gap, CELLS)
    found = ev.evaluate(
        *ledger, given=["rate"], num_resamples=200, key=jax.random.key(0)
    )
    return ledger, found


def test_table_holds_what_each_function_says(evaluation):
    (measures, gap, cells), found = evaluation
    row = found.measures.index("both")
    both = measures["both"]
    assert found.tau[row] == ev.kendall(both, gap).tau
    assert found.num_left_out[row] == 1
    assert found.num_pairs[row] == 59 * 58 // 2
    granulated = ev.granulated_kendall(both, gap, cells)
    assert found.granulated[row] == granulated.value
    np.testing.assert_array_equal(
        found.by_hyperparameter[row], granulated.by_hyperparameter
    )
    information = ev.conditional_mutual_information(both, gap, cells).value
    assert found.information[row] == information
    error = ev.robust_sign_error(both, gap, cells)
    assert found.worst_sign_error[row] == error.worst
    assert found.mean_sign_error[row] == error.mean
    rate = {"rate": CELLS["rate"]}
    assert found.partial[row] == pytest.approx(
        ev.partial_correlation(both, gap, rate).value
    )
    assert found.partial_spearman[row] == pytest.approx(
        ev.partial_correlation(both, gap, rate, method="spearman").value
    )
    assert found.low[row] < found.low_over_seeds[row] < found.tau[row] < found.high[row]
    assert found.ceiling == ev.noise_ceiling(gap)
    assert found.given == ("rate",)


def test_table_tells_what_ranks_from_what_does_not(evaluation):
    _, found = evaluation
    both, rate, noise, constant, failed = range(5)
    assert found.tau[both] > found.band
    assert abs(found.tau[noise]) < found.band < 0.7
    # The rate ranks the gap, but nothing besides the rate.
    assert found.tau[rate] > found.band
    assert np.isnan(found.partial[rate])
    assert found.information[rate] < 1e-12
    assert found.worst_sign_error[rate] == 0.5
    assert found.information[both] > found.information_by_chance
    assert found.information[noise] < 2 * found.information_by_chance
    # Undefined is NaN, with the counts that say why.
    assert np.isnan(found.tau[[constant, failed]]).all()
    assert np.isnan(found.granulated[[constant, failed]]).all()
    assert found.mean_sign_error[constant] == 0.5
    assert np.isnan(found.mean_sign_error[failed])
    assert found.num_left_out.tolist() == [1, 1, 1, 1, 60]
    assert found.num_pairs[failed] == 0


def test_text_of_the_table(evaluation):
    ledger, found = evaluation
    lines = ev.to_text(found).splitlines()
    assert f"best |tau| by chance {found.band:.2f}" in lines[0]
    assert lines[1].endswith("p.: partial given rate")
    assert lines[3].split()[:2] == ["both", f"{found.tau[0]:.2f}*"]
    (noise,) = (line for line in lines if line.startswith("noise   "))
    assert noise.split()[1] == f"{found.tau[2]:.2f}"  # within the band
    assert lines[-1].split() == ["failed", *["-"] * 11, "60"]
    assert len({len(line) for line in lines[2:]}) == 1
    plain = ev.evaluate(*ledger, num_resamples=2, key=jax.random.key(1))
    assert "partial" not in ev.to_text(plain)


def test_one_cell_has_no_order():
    one = np.array([[1.0, 2.0, 3.0]])
    cells = {"rate": [0.1]}
    found = ev.evaluate({"a": one}, one, cells, num_resamples=2, key=jax.random.key(0))
    assert found.tau[0] == 1.0  # among its seeds
    assert np.isnan(found.granulated[0])
    assert np.isnan(found.information[0])
    assert np.isnan(found.worst_sign_error[0])
    assert np.isnan(found.ceiling.between_seeds)
    assert "-" in ev.to_text(found)


def test_arrays_of_jax_and_integers_are_taken():
    gap = jnp.arange(6).reshape(3, 2)
    found = ev.kendall(gap.astype(jnp.float32), gap)
    assert found.tau == 1.0
    assert ev.noise_ceiling(gap).between_seeds == 1.0


TABLE = np.zeros((3, 2))
anything: Any = ev  # wrong types too


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: anything.kendall(TABLE, TABLE[:2]),
            r"`gap` must have the shape of `measu",
        ),
        (
            lambda: anything.kendall(TABLE[:, 0], TABLE),
            r"`measure` must have shape \[cells",
        ),
        (
            lambda: anything.kendall(TABLE.astype(str), TABLE),
            "`measure` must hold real numb",
        ),
        (
            lambda: anything.granulated_kendall(TABLE, TABLE, {"rate": [1, 2]}),
            r"`hyperparameters\['rate'\]` must have one value for each of the 3 cells",
        ),
        (
            lambda: anything.granulated_kendall(
                TABLE, TABLE, {"rate": [1.0, 2.0, NAN]}
            ),
            r"`hyperparameters\['rate'\]` must not be NaN",
        ),
        (lambda: anything.granulated_kendall(TABLE, TABLE, {}), "but is empty"),
        (lambda: anything.robust_sign_error(TABLE, TABLE, [1, 2, 3]), "but is a list"),
        (
            lambda: anything.robust_sign_error(
                TABLE, TABLE, {"r": [1, 2, 3]}, min_pairs=0
            ),
            "`min_pairs` must be a number of at least 1",
        ),
        (
            lambda: anything.robust_sign_error(
                TABLE, TABLE, {"r": [1, 2, 3]}, num_test=0
            ),
            "`num_test` must be an integer of at least 1",
        ),
        (
            lambda: anything.partial_correlation(TABLE, TABLE, {}),
            "`given` must be a dict",
        ),
        (
            lambda: anything.partial_correlation(TABLE, TABLE, {"r": [1, 2]}),
            r"`given\['r'\]` must have shape \(3,\) or \(3, 2\)",
        ),
        (
            lambda: anything.partial_correlation(
                TABLE, TABLE, {"r": TABLE}, method="tau"
            ),
            '`method` must be "kendall" or "spearman"',
        ),
        (
            lambda: anything.bootstrap(
                TABLE, TABLE, over="rows", key=jax.random.key(0)
            ),
            '`over` must be "cells" or "seeds"',
        ),
        (
            lambda: anything.bootstrap(TABLE, TABLE, key=0),
            "`key` must be one typed random",
        ),
        (
            lambda: anything.bootstrap(
                TABLE, TABLE, num_resamples=1, key=jax.random.key(0)
            ),
            "`num_resamples` must be an integer of at least 2",
        ),
        (
            lambda: anything.permutation_band(TABLE, TABLE, key=jax.random.key(0)),
            "`measures` must be a dictionary .* but is a ndarray",
        ),
        (
            lambda: anything.permutation_band(
                {"a": TABLE[:2]}, TABLE, key=jax.random.key(0)
            ),
            r"`measures\['a'\]` must have the shape of `gap`",
        ),
        (
            lambda: anything.noise_ceiling(TABLE, TABLE == 0),
            r"`mask` must have shape \(3, 3",
        ),
        (
            lambda: anything.variance_decomposition(TABLE, {"r": [1, 2, 3]}, order=3),
            "`order` must be 1 or 2, but was 3",
        ),
        (
            lambda: anything.evaluate(
                {"a": TABLE},
                TABLE,
                {"r": [1, 2, 3]},
                given=["w"],
                key=jax.random.key(0),
            ),
            "`given` must name hyperparameters or measures, but names 'w'",
        ),
        (
            lambda: jax.jit(lambda a: anything.kendall(a, TABLE).tau)(TABLE),
            "`measure` must be a concrete value",
        ),
    ],
)
def test_bad_input_is_refused(user_land, call, message):
    with pytest.raises(ValueError, match=message):
        call()
