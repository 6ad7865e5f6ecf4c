"""Model selection on tables made by hand, on histories, and on a population."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import bounds, dynamics

NAN, INF = float("nan"), float("inf")


def history(loss, measure, diverged_at=None):
    """A run of which the loss and one measure were recorded."""
    made = dynamics.History.from_arrays(np.zeros((2, 1)), losses=[9.0, loss])
    records = made.records | {"measure": np.array([7.0, measure])}
    return made._replace(records=records, diverged_at=diverged_at)


def test_the_choice_and_its_regret():
    found = bounds.select(
        None,
        by=[3.0, 1.0, 2.0, 4.0],
        test=[0.1, 0.3, 0.2, 0.4],
        validation=[0.25, 0.35, 0.15, 0.5],
    )
    assert (found.chosen, found.best, found.validation_chosen) == (1, 0, 2)
    assert found.rank == 3
    assert found.regret.value == pytest.approx(0.2)
    assert found.validation_regret.value == pytest.approx(0.1)
    assert found.random_regret.value == pytest.approx(0.15)
    assert found.regret.standard_error is found.regret.low is found.regret.high is None
    assert found.left_out == {}
    np.testing.assert_array_equal(found.num_runs, 1)
    largest = bounds.select(
        None, by=[3.0, 1.0, 2.0, 4.0], choose="largest", test=[0.1, 0.3, 0.2, 0.4]
    )
    assert (largest.chosen, largest.rank) == (3, 4)
    assert largest.regret.value == pytest.approx(0.3)
    assert largest.validation_chosen is largest.validation_regret is None
    only = bounds.select(None, by=[3.0, 1.0])
    assert only.chosen == 1
    assert only.test is only.best is only.rank is only.regret is None


def test_a_measure_that_does_not_choose_is_a_random_choice():
    found = bounds.select(None, by=[1.0, 1.0, 1.0], test=[0.3, 0.1, 0.2])
    assert found.tied == (0, 1, 2)
    assert found.regret == found.random_regret
    assert found.rank == 2
    found = bounds.select(None, by=[1.0, 1.0, 2.0], test=[0.3, 0.1, 0.5])
    assert found.tied == (0, 1)
    assert found.regret.value == pytest.approx(0.1)
    assert found.rank == 1.5


def test_runs_at_equal_loss_are_compared_by_name():
    runs = {
        "small": history(0.10, 5.0),
        "wide": history(0.11, 4.0),
        "trained longer": history(0.01, 1.0),
        "broken": history(0.10, NAN),
        "diverged": history(0.10, 0.0, diverged_at=40),
    }
    found = bounds.select(runs, by="measure", at=0.1, tolerance=0.02)
    assert found.chosen == "wide"
    assert found.candidates == tuple(runs)
    assert found.left_out == {
        "trained longer": "train_loss is 0.01",
        "broken": "by is nan",
        "diverged": "diverged at step 40",
    }
    np.testing.assert_array_equal(found.scores, [5, 4, NAN, NAN, NAN])
    np.testing.assert_array_equal(found.num_runs, [1, 1, 0, 0, 0])
    # The loss of another place, and a measure that is a function.
    final = lambda run: run.records["measure"][-1] * run.records["loss"][-1]
    found = bounds.select([*runs.values()], by=final, choose="largest")
    assert found.chosen == 0
    found = bounds.select(
        [*runs.values()],
        by=final,
        at=1.0,
        tolerance=0.0,
        train_loss=[1.0, 2.0, 1.0, 1.0, 1.0],
    )
    assert found.chosen == 2
    assert [*found.left_out] == [1, 3, 4]


def test_what_is_not_finite_is_left_out_but_a_vacuous_measure():
    found = bounds.select(
        None,
        by=[INF, 2.0, 1.0, -INF, 3.0],
        test=[0.2, 0.3, NAN, 0.1, 0.25],
        validation=[0.2, 0.3, 0.1, 0.1, INF],
    )
    assert found.left_out == {
        2: "test is nan",
        3: "by is -inf",
        4: "validation is inf",
    }
    assert (found.chosen, found.best) == (1, 0)
    assert found.scores[0] == INF
    assert bounds.select(None, by=[INF, -INF], choose="largest").left_out == {
        0: "by is inf"
    }


CELLS = [("a", 1), ("b", 1), ("a", 1), ("b", 1), ("a", 1), ("b", 1)]
BY = [1.0, 2.0, 3.0, 1.0, 2.0, 2.5]
TEST = [0.1, 0.2, 0.3, 0.1, 0.2, 0.0]


def test_seeds_of_a_cell_are_averaged_and_resampled():
    found = bounds.select(
        None,
        by=BY,
        test=TEST,
        validation=TEST,
        cells=CELLS,
        key=jax.random.key(0),
        num_resamples=4000,
    )
    assert found.candidates == (("a", 1), ("b", 1))
    assert found.chosen == ("b", 1)
    np.testing.assert_allclose(found.scores, [2, 5.5 / 3])
    np.testing.assert_allclose(found.test, [0.2, 0.1])
    assert found.regret.value == found.validation_regret.value == 0
    assert found.random_regret.value == pytest.approx(0.05)
    # All 27 x 27 resamples, by hand.
    by, test = np.array(BY), np.array(TEST)
    seeds = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
    regrets, random = [], []
    for a in seeds:
        for b in seeds:
            rows = 2 * a, 2 * b + 1
            score, error = ([np.mean(x[row]) for row in rows] for x in (by, test))
            order = np.flatnonzero(np.isclose(score, min(score)))
            regrets.append(np.mean(np.array(error)[order]) - min(error))
            random.append(np.mean(error) - min(error))
    for regret, want in ((found.regret, regrets), (found.random_regret, random)):
        want = np.array(want)
        assert regret.standard_error == pytest.approx(np.std(want), rel=0.1)
        assert regret.low == pytest.approx(np.quantile(want, 0.025), abs=1e-9)
        # A quantile of few different numbers: what is below, and what is not above.
        below, up_to = (np.mean(want < regret.high + e) for e in (-1e-9, 1e-9))
        assert below < 0.985
        assert up_to > 0.965
    # The choice by test itself is right in each resample.
    assert found.validation_regret.high == 0


def test_cells_are_what_is_left_of_them():
    by = [1.0, 2.0, NAN, 1.0, 2.0, NAN]
    found = bounds.select(None, by=by, cells=["a", "b", "a", "b", "c", "d"])
    assert found.candidates == ("a", "b", "c", "d")
    np.testing.assert_array_equal(found.num_runs, [1, 2, 1, 0])
    np.testing.assert_array_equal(found.scores, [1, 1.5, 2, NAN])
    assert [*found.left_out] == [2, 5]


def test_runs_of_a_population():
    objective = dynamics.supervised(lambda w, x: x @ w, lambda out, y: (out - y) ** 2)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    rates = jnp.array([0.05, 0.5, 1e15, 0.25])
    states = dynamics.init_population(
        optimizer, jnp.zeros((4, 2)), hyperparams={"learning_rate": rates}
    )
    many = dynamics.train_population(
        objective,
        states,
        optimizer,
        (jnp.eye(2), jnp.array([1.0, 2.0])),
        num_steps=4,
        keys=jax.random.split(jax.random.key(0), 4),
        record={"norm": lambda s: jnp.linalg.norm(s.params)},
        record_every=2,
        stop_when=lambda s: jnp.linalg.norm(s.params) > 1.9,
        progress=False,
    )
    assert many.stopped_at.tolist() == [-1, 4, -1, -1]
    found = bounds.select(many, by="norm", choose="largest")
    assert found.chosen == 1
    assert found.left_out == {2: "diverged at step 1"}
    # The state of one run, and the last loss in its trace.
    distance = lambda run: jnp.sum((run.state.params - jnp.array([1.0, 2.0])) ** 2)
    found = bounds.select(many, by=distance, test="loss")
    assert (found.chosen, found.best) == (1, 1)
    want = np.delete(many.trace["loss"][-1], 2)
    np.testing.assert_allclose(np.delete(found.test, 2), want, rtol=1e-6)


ONE = dynamics.History.from_arrays(np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("histories", "options", "match"),
    [
        ([], {}, "`histories` must hold at least one history"),
        (ONE, {}, "`histories` must be several, .* that of one run"),
        (3, {}, "`histories` must be histories in a sequence"),
        ([ONE, 3], {}, r"`histories\[1\]` must be the history of one run"),
        (
            [ONE],
            {"by": "sharpness"},
            "`by` must be a name .*'sharpness' is none of \\['params'",
        ),
        ([ONE], {"by": "params"}, "`by` must be one real number"),
        ([ONE], {"by": lambda run: None}, "`by` must be one real number"),
        (None, {"by": "loss"}, "`by` must hold one number for each run"),
        (None, {"by": []}, "`by` must hold one number for each run"),
        (None, {"by": [1.0, 2.0], "test": [1.0]}, "`test` must be one real number"),
        (None, {"by": [1.0], "test": "loss"}, "`test` must hold one number"),
        (None, {"by": [NAN, NAN]}, "all 2 were left out: .*by is nan"),
        (None, {"by": [1.0], "choose": "best"}, "`choose` must be one of"),
        (None, {"by": [1.0], "validation": [1.0]}, "`test` must be given to compare"),
        (None, {"by": [1.0], "at": 0.1}, "`at` and `tolerance` must be given together"),
        (None, {"by": [1.0], "tolerance": 0.1}, "`at` and `tolerance` must be"),
        (
            None,
            {"by": [1.0], "at": NAN, "tolerance": 0.1, "train_loss": [1.0]},
            "`at` must be a finite number",
        ),
        (
            None,
            {"by": [1.0], "at": 0.1, "tolerance": -1.0, "train_loss": [1.0]},
            "`tolerance` must be finite, at least 0",
        ),
        (None, {"by": [1.0], "cells": ["a", "b"]}, "`cells` must have one cell"),
        (
            None,
            {"by": [1.0, 2.0], "cells": [["a"], ["b"]]},
            "`cells` must be names.*row",
        ),
        (None, {"by": [1.0], "cells": [NAN]}, "`cells` must be names.*NaN"),
        (None, {"by": [1.0], "cells": 1}, "`cells` must be a sequence.*int"),
        (None, {"by": 1.0}, "`by` must hold one number for each run.*1.0"),
        (None, {"by": [[1.0], [1.0, 2.0]]}, "`by` must be one real number for each"),
        (None, {"by": [1.0], "num_resamples": 1}, "`num_resamples` must be"),
        (None, {"by": [1.0], "key": 3}, "`key` must be one typed"),
    ],
)
def test_bad_input(user_land, histories, options, match):
    with pytest.raises(ValueError, match=match):
        bounds.select(histories, **({"by": "loss"} | options))


def test_what_is_traced_is_named(user_land):
    asked = lambda **options: bounds.select(None, **({"by": [1.0, 2.0]} | options))
    near = lambda at: asked(at=at, tolerance=1.0, train_loss=[1.0, 2.0]).scores
    with pytest.raises(ValueError, match="`at` must be a concrete value"):
        jax.jit(near)(1.0)
    runs = [history(0.1, 1.0), history(0.1, 2.0)]
    by = lambda a: bounds.select(runs, by=lambda run: a).scores
    with pytest.raises(ValueError, match=r"`by\[0\]` must be a concrete value"):
        jax.jit(by)(1.0)
    seeds = lambda key: asked(test=[1.0, 2.0], cells=[1, 1], key=key).regret.value
    with pytest.raises(ValueError, match="`key` must be a concrete value"):
        jax.jit(seeds)(jax.random.key(0))


def test_half_precision_and_a_run_without_records():
    by = jnp.array([3.0, 1.0], jnp.bfloat16)
    assert bounds.select(None, by=by).chosen == 1
    short = history(0.1, 1.0)
    short = short._replace(records=short.records | {"measure": np.zeros(0)})
    found = bounds.select([short, history(0.1, 2.0)], by="measure")
    assert found.left_out == {0: "by is nan"}


def test_bootstrap_needs_seeds(user_land):
    options = {"by": [1.0, 2.0], "test": [1.0, 2.0]}
    with pytest.raises(ValueError, match="`cells` and `test` must be given"):
        bounds.select(None, **options, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`cells` must repeat"):
        bounds.select(None, **options, cells=["a", "b"], key=jax.random.key(0))
    with pytest.raises(ValueError, match="must be a concrete value"):
        jax.jit(lambda x: bounds.select(None, by=x).scores)(jnp.ones(2))
