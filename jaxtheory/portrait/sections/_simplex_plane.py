"""Three classes in the plane of their means, where a simplex is a triangle."""

import numpy as np

from jaxtheory import models, plot
from jaxtheory.portrait._numbers import compact, only
from jaxtheory.portrait._section import (
    Finding,
    Section,
    classification,
    lacking,
    nothing,
)
from jaxtheory.portrait.sections._collapse import last_features

_CLASSES = (0, 1, 2)
# Cosines of corners, scatter over the radius, angles of rows: within these it is one.
_TRIANGLE = {"cosine": 0.1, "scatter": 0.1, "degrees": 10.0}


def read(plan, history):
    """Features and classifier rows in the plane, as two coordinates each."""
    params = history.state.params
    splits = {}
    for split, x, y in (
        ("train", plan.x_train, plan.y_train),
        ("test", plan.x_test, plan.y_test),
    ):
        kept = np.isin(np.asarray(y), _CLASSES)
        features = np.asarray(last_features(plan, params, x), float)
        splits[split] = features[kept], np.asarray(y)[kept]
    features, labels = splits["train"]
    weight, _ = models.classifier(plan.module, {"params": params})
    rows = np.asarray(weight, float)[list(_CLASSES)]
    if not _whole(labels, features) or not np.isfinite(rows).all():
        return {"missing": True}
    corners = _means(features, labels)
    plane = np.linalg.svd(corners - corners.mean(axis=0), full_matrices=False)[2][:2]
    onto = lambda points: [only(point) for point in points @ plane.T]
    return {
        "missing": False,
        **{
            split: {"points": onto(points), "labels": y.tolist()}
            for split, (points, y) in splits.items()
        },
        "rows": onto(rows),
    }


def _whole(labels, features):
    """Whether every class is there, and finite."""
    return set(_CLASSES) <= {*labels.tolist()} and np.isfinite(features).all()


def _means(points, labels):
    return np.stack([points[labels == c].mean(axis=0) for c in _CLASSES])


def _corners(numbers):
    """Class means around their centre, and their radius; None where there is none."""
    if numbers["missing"]:
        return None
    points = np.asarray(numbers["train"]["points"], float)
    means = _means(points, np.asarray(numbers["train"]["labels"]))
    means = means - means.mean(axis=0)
    values = np.linalg.svd(means, compute_uv=False)
    if not values[1] > 1e-4 * values[0]:
        return None
    return means, np.sqrt(np.mean(np.sum(means**2, axis=1)))


def draw(numbers, ax):
    """Training features of three classes, with the classifier and the simplex."""
    if _corners(numbers) is None:
        ax.text(0.5, 0.5, "no plane to draw", transform=ax.transAxes, ha="center")
        return
    train = numbers["train"]
    plot.simplex_plane(
        np.asarray(train["points"], float),
        np.asarray(train["labels"]),
        classifier=(np.asarray(numbers["rows"], float), None),
        ax=ax,
    )


def findings(numbers):
    """Whether corners, scatter and rows are those of collapse."""
    found = _corners(numbers)
    if found is None:
        return [lacking("the means of three classes do not span a plane")]
    means, radius = found
    scatter = {split: _scatter(numbers[split]) / radius for split in ("train", "test")}
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = [float(units[i] @ units[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    rows = np.asarray(numbers["rows"], float)
    lengths = np.linalg.norm(rows, axis=1)
    along = np.sum(units * rows, axis=1) / np.where(lengths > 0, lengths, np.inf)
    degrees = np.degrees(np.arccos(np.clip(along, -1, 1)))
    names = ", ".join(map(str, _CLASSES[:-1])) + f" and {_CLASSES[-1]}"
    text = (
        f"In the plane of the means of classes {names} theory expects, in the end, an "
        "equilateral triangle with all features at its corners and the classifier's "
        f"rows pointing there. The cosines of the corners are "
        f"{', '.join(f'{cosine:.2f}' for cosine in cosines)} (theory: -0.50), features "
        f"scatter by {compact(scatter['train'])} of its radius (on test data "
        f"{compact(scatter['test'])}), and the rows point "
        f"{', '.join(f'{angle:.0f}°' for angle in degrees)} away from their corners."
    )
    is_one = (
        max(abs(cosine + 0.5) for cosine in cosines) <= _TRIANGLE["cosine"]
        and scatter["train"] <= _TRIANGLE["scatter"]
        and degrees.max() <= _TRIANGLE["degrees"]
    )
    return [Finding(text, "agrees" if is_one else "measured")]


def _scatter(split):
    """Root mean square distance of features from their own class mean."""
    points, labels = np.asarray(split["points"], float), np.asarray(split["labels"])
    present = [points[labels == c] for c in _CLASSES if np.any(labels == c)]
    squares = [np.sum((p - p.mean(axis=0)) ** 2, axis=1) for p in present]
    return float(np.sqrt(np.mean(np.concatenate(squares)))) if squares else np.nan


def no_rows(numbers):
    """Nothing for the table: NC1 to NC3 are there."""
    return []


SECTION = Section(
    "simplex_plane",
    "Three classes in their plane",
    classification,
    nothing,
    nothing,
    read,
    draw,
    findings,
    no_rows,
)
