"""The runs that `select` compares, what is asked of them, and who is left out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxtheory.bounds._ledger import check_concrete
from jaxtheory.dynamics import History


def named_runs(histories: Any, by: Any) -> tuple[list[Any], list[History | None]]:
    """Names of the runs, and the history of each; None for one of which there is none.

    Args:
        histories: As of `select`.
        by: The measure, which tells how many there are without histories.

    Returns:
        Two lists.

    Raises:
        ValueError: There is no run, or something that is no history of one.
    """
    if histories is None:
        num = _length(by)
        if num == 0:
            raise ValueError(
                "`by` must hold one number for each run where `histories` is None, but "
                f"was {by!r}."
            )
        return list(range(num)), [None] * num
    if isinstance(histories, History):
        if np.ndim(histories.diverged_at) == 0:
            raise ValueError(
                "`histories` must be several, or one of a population, but is that of "
                "one run. Pass a sequence of histories."
            )
        num = len(histories.diverged_at)
        # Once, and not an array of the device for each run.
        state, memory = jax.device_get((histories.state, histories.memory))
        here = histories._replace(state=state, memory=memory)
        return list(range(num)), [_run(here, i) for i in range(num)]
    if not isinstance(histories, Sequence | Mapping):
        raise ValueError(
            "`histories` must be histories in a sequence or by name, one of a "
            f"population, or None, but is a {type(histories).__name__}."
        )
    named = histories if isinstance(histories, Mapping) else dict(enumerate(histories))
    for name, history in named.items():
        if not isinstance(history, History) or np.ndim(history.diverged_at):
            raise ValueError(
                f"`histories[{name!r}]` must be the history of one run, but is of type "
                f"{type(history).__name__}"
                f"{' of a population' if isinstance(history, History) else ''}."
            )
    if not named:
        raise ValueError("`histories` must hold at least one history, but is empty.")
    return list(named), list(named.values())


def _length(by) -> int:
    """How many numbers there are; 0 for what is not several."""
    try:
        return 0 if isinstance(by, str) or callable(by) else len(by)
    except TypeError:
        return 0


def _run(population, index) -> History:
    """The history of one run of a population."""
    ends = {
        name: None if end is None or end[index] < 0 else int(end[index])
        for name in ("diverged_at", "stopped_at")
        for end in [getattr(population, name)]
    }
    first = lambda tree: jax.tree.map(lambda a: a[index], tree)
    second = lambda tree: jax.tree.map(lambda a: a[:, index], tree)
    return population._replace(
        state=first(population.state),
        memory=first(population.memory),
        records=second(population.records),
        trace=second(population.trace),
        **ends,
    )


def cell_labels(cells: Any) -> list[Any]:
    """The cells in a list; raise unless a dictionary finds what equals each."""
    if isinstance(cells, str) or not isinstance(cells, Iterable):
        raise ValueError(
            "`cells` must be a sequence of one cell for each run, but is of type "
            f"{type(cells).__name__}."
        )
    labels = list(cells)
    if not all(map(_can_be_found, labels)):
        raise ValueError(
            "`cells` must be names, or tuples of hyperparameters, but one cannot be "
            "looked up (a list, an array, or NaN). Make a tuple of numbers of each row."
        )
    return labels


def _can_be_found(label):
    try:
        hash(label)
    except TypeError:
        return False
    return label == label


def values_of_runs(
    name: str, what: Any, runs: list[History | None]
) -> Float[np.ndarray, " m"]:
    """A quantity of each run, in float64.

    Args:
        name: What an error message calls it.
        what: A recorded name, a function of a history, or numbers.
        runs: Histories.

    Returns:
        The numbers; NaN for a diverged run, of which no function is asked.

    Raises:
        ValueError: It is not recorded, or not one real number a run.
    """
    if isinstance(what, str) or callable(what):
        if runs[0] is None:
            raise ValueError(
                f"`{name}` must hold one number for each run where `histories` is "
                f"None, but was {what!r}."
            )
        what = [_asked(run, what, name) for run in runs]
        check_concrete(**{name: what})
    try:
        values = np.asarray(what)
    except ValueError:
        values = np.empty(0, object)
    # Half precision of JAX is no kind of NumPy's.
    real = values.dtype.kind in "biuf" or jnp.issubdtype(values.dtype, jnp.floating)
    if values.shape != (len(runs),) or not real:
        raise ValueError(
            f"`{name}` must be one real number for each of the {len(runs)} runs, but "
            f"has shape {values.shape} and dtype {values.dtype}."
        )
    return values.astype(np.float64)


def _asked(history, what, argument):
    """A quantity of one run; NaN of one that diverged."""
    if history.diverged_at is not None:
        return np.nan
    return what(history) if callable(what) else _recorded(history, what, argument)


def _recorded(history, name, argument):
    """The last record of that name, or the last finite value in the trace."""
    if name in history.records:
        rows = np.asarray(history.records[name])
        return rows[-1] if len(rows) else np.nan
    if name not in history.trace:
        known = sorted({*history.records, *history.trace})
        raise ValueError(
            f"`{argument}` must be a name that every history has, but {name!r} is none "
            f"of {known}, which one has."
        )
    # The trace of a population goes on, with NaN, where a run has stopped.
    row = np.asarray(history.trace[name])
    finite = row[np.isfinite(row)]
    return finite[-1] if len(finite) else np.nan


def left_out_runs(
    names: list[Any],
    runs: list[History | None],
    values: dict[str, np.ndarray],
    at: float | None,
    tolerance: float | None,
) -> dict[Any, str]:
    """The runs that cannot be compared, with the reason.

    Args:
        names: Of the runs.
        runs: Their histories.
        values: Their quantities, by name; ``"order"`` is the measure with the sign that
            makes the smallest best.
        at: Where ``values["train_loss"]`` must be; None for anywhere.
        tolerance: How near.

    Returns:
        ``{name: reason}``.
    """
    found = {}
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        if run is not None and run.diverged_at is not None:
            found[name] = f"diverged at step {run.diverged_at}"
            continue
        wrong = [
            what for what, row in values.items() if not _is_usable(what, row[index])
        ]
        if wrong:
            what = wrong[0].replace("order", "by")
            found[name] = f"{what} is {values[what][index]}"
        elif at is not None and tolerance is not None:
            loss = values["train_loss"][index]
            if abs(loss - at) > tolerance:
                found[name] = f"train_loss is {loss:.6g}"
    return found


def _is_usable(what, value):
    """Whether a value can be compared; an infinite measure can, as the worst."""
    if what == "by":
        return not np.isnan(value)
    return value > -np.inf and (value < np.inf or what == "order")
