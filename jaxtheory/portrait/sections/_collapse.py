"""Neural collapse of the last hidden layer, on training and on test data."""

import numpy as np

from jaxtheory import collapse, models, plot
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    classification,
    is_curve,
    lacking,
    nothing,
)

_NAMES = ("nc1", "nc2", "nc3", "nc4")
# Below these the geometry is within a few percent of the collapsed one.
_COLLAPSED = {"nc1": 0.05, "nc2": 0.1, "nc3": 0.1, "nc4": 0.01}


def last_features(plan, params, x):
    """What the classifier acts on, one row for each example."""
    *_, features = models.features(plan.module, {"params": params}, x).values()
    return features.reshape(len(x), -1)


def record(plan):
    """NC1 to NC4 of the last hidden layer, and the angles of its class means."""

    def statistics(params, x, y):
        result = collapse.statistics(
            last_features(plan, params, x),
            y,
            classifier=models.classifier(plan.module, {"params": params}),
            num_classes=plan.num_classes,
        )
        return {n: getattr(result, n) for n in (*_NAMES, "nc2_equiangular")}

    def measure(state):
        return {
            "train": statistics(state.params, plan.x_train, plan.y_train),
            "test": statistics(state.params, plan.x_test, plan.y_test),
        }

    return {"collapse": measure}


def read(plan, history):
    """The four curves on both splits, and when training error vanished."""
    values = history.records["collapse"]
    error = np.asarray(history.records["evaluation"]["train"]["error"])
    return {
        "steps": [int(step) for step in history.steps],
        **{s: {n: only(values[s][n]) for n in _NAMES} for s in ("train", "test")},
        "interpolates": bool(error[-1] == 0),
        "first_zero": int(history.steps[np.argmax(error == 0)]),
    }


# A measure that lost less than a tenth has stood still.
_FALLEN = 0.9


def draw(numbers, ax):
    """The four measures on training and on test data."""
    splits = (numbers["train"], numbers["test"])
    plot.collapse_curves(numbers["steps"], *splits, measures=_NAMES, ax=ax)


def findings(numbers):
    """Whether the classes collapse once training error is zero, and on which data."""
    train, test = numbers["train"], numbers["test"]
    start, end = train["nc1"][0], train["nc1"][-1]
    if not is_curve(train["nc1"]):
        return [lacking("NC1 is not finite at the last record, or only there")]
    if not numbers["interpolates"]:
        text = (
            "Theory speaks of the phase after training error reaches zero, which this "
            f"run does not reach; NC1 went from {compact(start)} to {compact(end)}."
        )
        return [Finding(text, "measured")]
    ratio = test["nc1"][-1] / max(end, np.finfo(float).tiny)
    text = (
        f"On test data NC1 ends at {compact(test['nc1'][-1])}, {compact(ratio)} times"
    )
    text += " its training value"
    if _is_near(train):
        both = "on both sets" if _is_near(test) else "on the training set alone"
        text += f": the last layer has collapsed {both}"
    second = Finding(text + ".", "measured")
    return [_fall(numbers), *([second] if np.isfinite(ratio) else [])]


def _is_near(measures, factor=1):
    """All four measures end below `factor` times what counts as collapsed."""
    limits = _COLLAPSED.items()
    return all(measures[name][-1] <= factor * limit for name, limit in limits)


def _fall(numbers):
    """What the four measures did after training error reached zero."""
    train = numbers["train"]
    after = numbers["steps"][-1] - numbers["first_zero"]
    if after == 0:
        return lacking("training error reached zero only at the last record")
    onset = numbers["steps"].index(numbers["first_zero"])
    then, now = ({n: train[n][row] for n in _NAMES} for row in (onset, -1))
    fell = [n for n in _NAMES if now[n] <= max(_FALLEN * then[n], _COLLAPSED[n])]
    rose = [n for n in _NAMES if now[n] > max(then[n] / _FALLEN, _COLLAPSED[n])]
    moves = ", ".join(
        f"{name.upper()} {compact(then[name])} → {compact(now[name])}"
        for name in _NAMES
    )
    state = "the last layer is far from collapsed"
    if _is_near(train):
        state = "the last layer has collapsed"
    elif _is_near(train, factor=3):
        state = "the last layer is close to collapsed"
    text = (
        "Theory expects all four measures to fall towards 0 once training error is "
        f"zero; in the {after:,} steps since then {moves}: {len(fell)} of 4 fell by a "
        f"tenth or are there, and {state}."
    )
    if len(fell) == len(_NAMES):
        return Finding(text, "agrees")
    return Finding(text, "disagrees" if rose else "measured")


def rows(numbers):
    """Final NC1 on both splits."""
    train, test = numbers["train"]["nc1"], numbers["test"]["nc1"]
    return [
        Row("NC1, train", compact(train[-1]), f"0; started at {compact(train[0])}"),
        Row("NC1, test", compact(test[-1]), f"0; started at {compact(test[0])}"),
    ]


SECTION = Section(
    "collapse",
    "Neural collapse",
    classification,
    record,
    nothing,
    read,
    draw,
    findings,
    rows,
)
