"""Model selection by a measure, and what it costs against the best and a validation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key, check_number, check_word
from jaxtheory.bounds._ledger import check_concrete
from jaxtheory.bounds._select_runs import (
    cell_labels,
    left_out_runs,
    named_runs,
    values_of_runs,
)
from jaxtheory.dynamics import History

Quantity: TypeAlias = (
    str | Callable[[History], Any] | Real[ArrayLike, " m"] | Sequence[float]
)


class Regret(NamedTuple):
    """How much worse than the best candidate a choice is on test.

    Attributes:
        value: Test error of the choice less that of the best; the mean over candidates
            that tie for the choice.
        standard_error: Standard deviation (``1 / (b - 1)``) over resamples of the
            seeds; None without a bootstrap, as `low` and `high`.
        low: Lower end of the 95 % percentile interval.
        high: Upper end.
    """

    value: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


class Selection(NamedTuple):
    """What `select` returns. Candidates are runs, or cells of runs.

    Attributes:
        chosen: The candidate with the best score: its name or index, or its cell. Of
            several, the first.
        tied: All that share that score: between them the measure does not choose.
        candidates: All candidates, in order.
        scores: Mean measure of each candidate, NaN where it has no run left.
        num_runs: How many runs that is the mean of.
        left_out: The runs that were left out, each with the reason.
        test: Mean test error of each candidate; None, as all below, without `test`.
        best: The candidate with the smallest one.
        rank: Place of the choice by test error: 1 for the best, plus how many are
            better; the mean over ties.
        regret: Of the choice.
        random_regret: Of a candidate drawn at random, in expectation.
        validation_chosen: What the validation error chooses; None without it.
        validation_regret: Of that choice.
    """

    chosen: Any
    tied: tuple[Any, ...]
    candidates: tuple[Any, ...]
    scores: Float[np.ndarray, " c"]
    num_runs: Int[np.ndarray, " c"]
    left_out: dict[Any, str]
    test: Float[np.ndarray, " c"] | None = None
    best: Any = None
    rank: float | None = None
    regret: Regret | None = None
    random_regret: Regret | None = None
    validation_chosen: Any = None
    validation_regret: Regret | None = None


def select(
    histories: History | Sequence[History] | Mapping[Any, History] | None,
    *,
    by: Quantity,
    choose: Literal["smallest", "largest"] = "smallest",
    test: Quantity | None = None,
    validation: Quantity | None = None,
    cells: Sequence[Any] | None = None,
    at: float | None = None,
    tolerance: float | None = None,
    train_loss: Quantity = "loss",
    num_resamples: SupportsIndex = 1000,
    key: KeyArray | None = None,
) -> Selection:
    r"""Choose a model by a measure, and say what the choice costs.

    The regret of a choice is its test error less the smallest test error among the
    candidates. Beside it stand that of the choice by validation error and that of a
    random choice, ``mean(test) - min(test)``: a measure that is not below the latter
    is of no use. A measure that is the same for several candidates does not choose:
    its regret is the mean over them, so that a constant one is a random choice.

    Each of `by`, `test`, `validation` and `train_loss` is a recorded name (the last
    record, or the last finite value in the trace), a function ``f(history) -> scalar``
    of the history of one run, or one number for each run.

    With `cells` the candidates are cells, their runs seeds: all quantities are means
    over the seeds that are left. Given a `key`, seeds are drawn with replacement in
    each cell, with all that was measured of them, and everything is computed again.
    The best is the smallest of noisy means, so that all regrets are too large by about
    the same; compare them. A cell with one seed does not vary in the bootstrap.

    Runs that diverged, whose loss is not at `at`, or of which a quantity is not finite
    are left out, and listed. An infinite measure, as of a vacuous bound, may lose, but
    not win; if all are infinite, they tie.

    Args:
        histories: Histories of runs in a sequence or by name, or one of a population;
            None where all quantities are numbers.
        by: The measure.
        choose: Whether the smallest or the largest measure is best.
        test: Test error of each run; smaller is better (of accuracies pass one minus
            them). None only chooses.
        validation: Validation error of each run; needs `test`.
        cells: The cell of each run (a name, or a tuple of hyperparameters); runs of the
            same cell differ in their seed. None makes each run a candidate.
        at: Compare only runs whose `train_loss` is within `tolerance` of this.
        tolerance: For `at`, in units of the loss.
        train_loss: For `at`.
        num_resamples: Resamples ``b``, at least 2.
        key: Random key of the bootstrap over seeds; None for none.

    Returns:
        The choice, the scores, who was left out, and the regrets.

    Raises:
        ValueError: No run is left; a quantity is no recorded name, or not one real
            number a run; `validation` is given without `test`, one of `at` and
            `tolerance` without the other, or `key` without seeds; an option is out of
            range.

    Memory:
        ``3 b c`` numbers, on the host.

    Example:
        >>> from jaxtheory import bounds
        >>> found = bounds.select(
        ...     None,
        ...     by=[3.0, 1.0, 2.0, float("nan")],
        ...     test=[0.30, 0.14, 0.10, 0.05],
        ...     validation=[0.31, 0.15, 0.12, 0.04],
        ... )
        >>> found.chosen, found.best, found.rank, found.left_out
        (1, 2, 2.0, {3: 'by is nan'})
        >>> round(found.regret.value, 2), round(found.random_regret.value, 2)
        (0.04, 0.08)
        >>> found.validation_chosen, found.validation_regret.value
        (2, 0.0)
    """
    check_word("choose", choose, ("smallest", "largest"))
    num_resamples = check_count(at_least=2, num_resamples=num_resamples)
    if key is not None:
        check_key(key)
    check_concrete(at=at, tolerance=tolerance, key=key)
    asked = {"by": by, "test": test, "validation": validation}
    asked |= {"train_loss": None if at is None else train_loss}
    asked = {name: what for name, what in asked.items() if what is not None}
    _check_settings(asked, at, tolerance, cells, key)
    names, runs = named_runs(histories, by)
    values = {name: values_of_runs(name, what, runs) for name, what in asked.items()}
    values["order"] = values["by"] * (1 if choose == "smallest" else -1)
    left_out = left_out_runs(names, runs, values, at, tolerance)
    if len(left_out) == len(names):
        raise ValueError(
            f"`histories` must leave a run to choose, but all {len(names)} were left "
            f"out: {left_out}."
        )
    groups = _groups(names, cells, left_out)
    if key is not None and max(map(len, groups.values())) < 2:
        raise ValueError(
            "`cells` must repeat for a bootstrap over seeds, but each has one run left."
            " Pass no `key`."
        )
    means = _means(values, groups, 0 if key is None else num_resamples, key)
    return _selection(groups, left_out, means)


def _check_settings(asked, at, tolerance, cells, key):
    """Raise unless what belongs together is given together."""
    check_concrete(**{name: w for name, w in asked.items() if not callable(w)})
    no_test = "test" not in asked
    if "validation" in asked and no_test:
        raise ValueError("`test` must be given to compare `validation` on, but is not.")
    if key is not None and (cells is None or no_test):
        raise ValueError(
            "`cells` and `test` must be given for a bootstrap over seeds, which `key` "
            "asks for, but one is not."
        )
    if (at is None) != (tolerance is None):
        raise ValueError(
            "`at` and `tolerance` must be given together, but were "
            f"{at!r} and {tolerance!r}."
        )
    if at is not None:
        check_number("at", at, np.isfinite, "a finite number")
        in_range = lambda t: 0 <= t < np.inf
        check_number("tolerance", tolerance, in_range, "finite, at least 0")


def _groups(names, cells, left_out) -> dict[Any, np.ndarray]:
    """The rows of the runs that are left, by candidate."""
    labels = names if cells is None else cell_labels(cells)
    if len(labels) != len(names):
        raise ValueError(
            f"`cells` must have one cell for each of the {len(names)} runs, but has "
            f"{len(labels)}."
        )
    found: dict[Any, list[int]] = {}
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        rows = found.setdefault(label, [])
        if name not in left_out:
            rows.append(row)
    return {label: np.array(rows, int) for label, rows in found.items()}


def _means(values, groups, num_resamples, key) -> dict[str, np.ndarray]:
    """Means ``[1 + b, c]`` of candidates with a run: of all seeds, then resampled."""
    groups = [rows for rows in groups.values() if len(rows)]
    draws = [rows[None] for rows in groups]
    found = {}
    if num_resamples:
        draw = np.random.default_rng(np.ravel(jax.random.key_data(key)).tolist())
        again = [
            rows[draw.integers(len(rows), size=(num_resamples, len(rows)))]
            for rows in groups
        ]
        draws = [np.concatenate(both) for both in zip(draws, again, strict=True)]
    for name, row in values.items():
        found[name] = np.stack([row[chosen].mean(axis=1) for chosen in draws], axis=1)
    return found


def _selection(groups, left_out, means) -> Selection:
    """The choice, and where there are test errors what it costs."""
    num_runs = np.array([len(rows) for rows in groups.values()])
    scored = [label for label, rows in groups.items() if len(rows)]

    def of_all(means):
        column = np.full(len(groups), np.nan)
        column[num_runs > 0] = means[0]
        return column

    tied = _tied(means["order"])[0]
    found = Selection(
        chosen=scored[int(np.argmax(tied))],
        tied=tuple(itertools.compress(scored, tied)),
        candidates=tuple(groups),
        scores=of_all(means["by"]),
        num_runs=num_runs,
        left_out=left_out,
    )
    if "test" not in means:
        return found
    test = means["test"]
    better = np.sum(test[0][None, :] < test[0][:, None], axis=1)
    found = found._replace(
        test=of_all(test),
        best=scored[int(np.argmin(test[0]))],
        rank=float(1 + np.mean(better[tied])),
        regret=_regret(means["order"], test),
        random_regret=_regret(np.zeros_like(test), test),
    )
    if "validation" not in means:
        return found
    return found._replace(
        validation_chosen=scored[int(np.argmin(means["validation"][0]))],
        validation_regret=_regret(means["validation"], test),
    )


def _tied(order):
    """Which candidates share the smallest number of each row."""
    return order == order.min(axis=1, keepdims=True)


def _regret(order, test) -> Regret:
    """The regret of choosing the smallest `order`, with its bootstrap."""
    tied = _tied(order)
    chosen = np.sum(np.where(tied, test, 0), axis=1) / np.sum(tied, axis=1)
    value, *samples = chosen - test.min(axis=1)
    if not samples:
        return Regret(float(value))
    low, high = np.quantile(samples, (0.025, 0.975))
    return Regret(float(value), float(np.std(samples, ddof=1)), float(low), float(high))
