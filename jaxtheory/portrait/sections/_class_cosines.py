"""The angles between class means of the last hidden layer."""

import numpy as np

from jaxtheory import plot
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    classification,
    lacking,
    nothing,
)
from jaxtheory.portrait.sections._collapse import last_features

_NEAR = 0.1  # mean distance from the cosine of a simplex


def read(plan, history):
    """Class means at the end, and how far from a simplex their cosines were."""
    features = np.asarray(last_features(plan, history.state.params, plan.x_train))
    labels = np.asarray(plan.y_train)
    classes = np.unique(labels)
    means = [features[labels == c].mean(axis=0) for c in classes]
    recorded = history.records["collapse"]
    away = {s: only(recorded[s]["nc2_equiangular"]) for s in ("train", "test")}
    error = history.records["evaluation"]["train"]["error"]
    return {
        "classes": classes.tolist(),
        "means": [only(mean) for mean in means],
        "start": away["train"][0],
        "end": away["train"][-1],
        "test": away["test"][-1],
        "interpolates": bool(error[-1] == 0),
    }


def _means(numbers):
    """The class means, or None where they are not all finite."""
    means = np.asarray(numbers["means"], float)
    return means if np.isfinite(means).all() and len(means) > 1 else None


def draw(numbers, ax):
    """The cosines as a heat map."""
    means = _means(numbers)
    if means is None:
        ax.text(0.5, 0.5, "not finite", transform=ax.transAxes, ha="center")
        return
    plot.class_mean_cosines(means, np.asarray(numbers["classes"]), ax=ax)


def findings(numbers):
    """How far the angles are from those of a simplex, and which are furthest."""
    means = _means(numbers)
    if means is None or not np.isfinite(numbers["end"]):
        return [lacking("class means are not finite at the end")]
    centred = means - means.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    if not norms.min() > 0:
        return [lacking("a class mean is the mean of all")]
    first, second = np.triu_indices(len(means), 1)
    products = np.sum(centred[first] * centred[second], axis=1)
    cosines = products / (norms[first] * norms[second])
    ends = [
        f"{cosines[place]:.2f} (classes {numbers['classes'][first[place]]} and "
        f"{numbers['classes'][second[place]]})"
        for place in (np.argmin(cosines), np.argmax(cosines))
    ]
    text = (
        f"Theory expects every pair of class means at cosine "
        f"{-1 / (len(means) - 1):.2f} in the end. They reach from {ends[0]} to "
        f"{ends[1]}, on average {compact(numbers['end'])} away from it on training "
        f"data (at the start {compact(numbers['start'])}) and "
        f"{compact(numbers['test'])} on test data"
    )
    if numbers["end"] <= _NEAR:
        return [Finding(text + ".", "agrees")]
    if not numbers["interpolates"]:
        text += "; training error has not reached zero, which theory speaks of"
    return [Finding(text + ".", "measured")]


def rows(numbers):
    """Mean distance from the angles of a simplex."""
    return [
        Row(
            "class means' cosines, from simplex",
            compact(numbers["end"]),
            f"0; test {compact(numbers['test'])}",
        )
    ]


SECTION = Section(
    "class_cosines",
    "Angles of class means",
    classification,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
