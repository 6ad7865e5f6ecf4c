"""Where class means are: their cosines, and the plane of three of them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer
from matplotlib import colormaps
from matplotlib.axes import Axes

from jaxtheory.batching import check_examples
from jaxtheory.plot._style import (
    KERNEL,
    NULL,
    TEST,
    THEORY,
    TRAIN,
    beside,
    drawn_into,
)

Features: TypeAlias = Float[Array | np.ndarray, "n d"]
Labels: TypeAlias = Integer[Array | np.ndarray, " n"]

_OF_CLASSES = (TRAIN, TEST, KERNEL)
_WRITTEN = 12  # classes for whose cosines there is room
_ANGLES = np.pi / 2 + 2 * np.pi / 3 * np.arange(3)
_TRIANGLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def class_mean_cosines(
    features: Features,
    labels: Labels,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the cosines of centred class means, ``cos(mu_i - mu_G, mu_j - mu_G)``.

    ``mu_G`` is the mean of the class means, every class weighing the same. White is
    ``-1/(K-1)``, which all pairs of a simplex frame have; red is more similar, blue
    less. The diagonal, always 1, is grey, and so is the row of a class whose mean
    is ``mu_G``. The scale ends at the largest difference from white, or at 0.25 where
    that is smaller, so that a collapsed network looks pale.

    Args:
        features: One row for each example. For given class means pass those, with one
            label each.
        labels: Class index of each example. Classes without examples are left out, and
            ``K`` counts the others.
        names: A name for each class index, in order; None shows the index.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, the cosines as their first image; the color bar has axes of its own,
        the last of ``ax.figure.axes``.

    Raises:
        ValueError: Shapes or dtypes do not fit, features are not finite, fewer than two
            classes occur, or there are too few names.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import plot
        >>> means = jnp.array([[1.0, 0.0], [-0.5, 1.0], [-0.5, -1.0]])
        >>> ax = plot.class_mean_cosines(means, jnp.arange(3))
        >>> [text.get_text() for text in ax.texts]
        ['-.45', '-.45', '-.45', '-.60', '-.45', '-.60']

    References:
        Papyan, Han & Donoho, arXiv:2008.08186, figure 3 (equiangularity).
    """
    classes, means = _class_means(features, labels, at_least=2)
    shown = _names(names, classes)
    cosines = _cosines(means)
    simplex = -1 / (len(classes) - 1)
    np.fill_diagonal(cosines, np.nan)
    differences = np.abs(cosines - simplex)
    widest = max(0.25, np.max(differences[np.isfinite(differences)], initial=0.0))
    ax = drawn_into(ax)
    low, high = simplex - widest, simplex + widest
    colours = colormaps["RdBu_r"].with_extremes(bad="#e0e0e0")
    image = ax.imshow(cosines, cmap=colours, vmin=low, vmax=high)
    ax.grid(visible=False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(shown)), shown)
        axis.set_tick_params(length=0)
    if max(map(len, shown)) > 2:
        ax.tick_params("x", rotation=45)
    if len(classes) <= _WRITTEN:
        _write(ax, cosines, np.abs(cosines - simplex) > 0.6 * widest)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.ax.axhline(simplex, color=THEORY, lw=1.2)
    bar.set_label(f"cosine around the centre (line: {simplex:.2f}, simplex)")
    return ax


def _write(ax, cosines, dark):
    """The numbers into their cells."""
    size = 8 if len(cosines) <= 6 else 6
    for (row, column), value in np.ndenumerate(cosines):
        if np.isfinite(value):
            text = f"{value:.2f}".replace("0.", ".", 1)
            colour = "white" if dark[row, column] else THEORY
            place = {"ha": "center", "va": "center", "fontsize": size}
            ax.text(column, row, text, color=colour, **place)


def simplex_plane(
    features: Features,
    labels: Labels,
    *,
    classes: Sequence[int] | None = None,
    classifier: tuple[Float[Array | np.ndarray, "k d"], Any] | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the features of three classes in the plane of their means.

    Features are projected on the plane through three class means, around their centre;
    rows of the classifier on the directions of that plane. Three vectors of a simplex
    frame of any number of classes are there the corners of an equilateral triangle,
    which is drawn, turned to where it fits best. Lengths are over the root mean square
    distance of the means from their centre, those of the rows over their own root mean
    square: 1 is the triangle's radius. What is orthogonal to the plane is not seen.

    Args:
        features: One row for each example, ``d >= 2``.
        labels: Class index of each example.
        classes: The three classes; None takes the first three that occur.
        classifier: ``(weight, bias)`` of the last layer, as `collapse.statistics` takes
            it. At collapse each row of the weight points at its class mean; the bias
            has no part in this.
        names: A name for each class index, in order; None shows the index.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: the triangle, then the three means, then the rows of the classifier as
        lines from the centre; the features of each class as a collection.

    Raises:
        ValueError: Shapes or dtypes do not fit, features are not finite, fewer than
            three classes occur, `classes` are not three of them, or their means lie on
            one line.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import plot
        >>> frame = 2 * jnp.eye(4)
        >>> ax = plot.simplex_plane(frame, jnp.arange(4), classifier=(frame, None))
        >>> [mean.get_xydata().round(2).tolist()[0] for mean in ax.lines[1:4]]
        [[0.0, 1.0], [-0.87, -0.5], [0.87, -0.5]]

    References:
        Papyan, Han & Donoho, arXiv:2008.08186, figure 1 (such a picture).
    """
    found, means = _class_means(features, labels, at_least=3)
    chosen = _three(classes, found)
    shown = _names(names, chosen)
    weight = _rows(classifier, means.shape[1], chosen)
    corners = means[[int(np.flatnonzero(found == c)[0]) for c in chosen]]
    centre = corners.mean(axis=0)
    plane = _basis(corners - centre)
    radius = np.sqrt(np.mean(np.sum((corners - centre) ** 2, axis=1)))
    onto = lambda points: (points - centre) @ plane / radius
    rows, y = np.asarray(features, float), np.asarray(labels)
    ax = drawn_into(ax)
    triangle = _TRIANGLE[[0, 1, 2, 0]]
    ax.plot(*triangle.T, "--*", color=THEORY, lw=1, ms=9, mfc="white", label="simplex")
    for place, name, colour in zip(onto(corners), shown, _OF_CLASSES, strict=True):
        style = {"color": colour, "ms": 8, "mec": "white", "zorder": 4}
        ax.plot(*place[:, None], "o", label=f"class {name}", **style)
    for c, colour in zip(chosen, _OF_CLASSES, strict=True):
        points = onto(rows[y == c])
        ax.scatter(*points.T, s=9, color=colour, alpha=0.35, lw=0, zorder=2)
    if weight is not None:
        _draw_rows(ax, weight @ plane)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("plane of three class means (corners at 1)")
    beside(ax)
    return ax


def _draw_rows(ax, rows):
    """The classifier's rows as lines from the centre."""
    length = np.sqrt(np.mean(np.sum(rows**2, axis=1)))
    rows = rows / length if length > 0 else rows
    for (x, y), colour in zip(rows, _OF_CLASSES, strict=True):
        style = {"color": colour, "lw": 1.8, "zorder": 3, "ms": 6, "mec": THEORY}
        ax.plot([0, x], [0, y], "-D", markevery=[1], **style)
    handle = {"color": NULL, "ms": 6, "mec": THEORY, "label": "classifier row"}
    ax.plot([], [], "-D", **handle)


def _basis(corners):
    """Orthonormal directions ``[d, 2]`` that put the corners nearest to the triangle.

    Of all rotations and reflections of the plane that spans the corners.
    """
    values, directions = np.linalg.svd(corners, full_matrices=False)[1:]
    if len(values) < 2 or not values[1] > 1e-7 * values[0]:
        raise ValueError(
            "`features` must have class means that span a plane, but those of "
            "`classes` lie on one line, or coincide."
        )
    plane = directions[:2].T
    # Procrustes: the orthogonal factor of the product with the triangle.
    left, _, right = np.linalg.svd((corners @ plane).T @ _TRIANGLE)
    return plane @ left @ right


def _class_means(features, labels, *, at_least):
    """The classes that occur, and their means in float64."""
    check_examples(features=features, labels=labels)
    rows, y = np.asarray(features), np.asarray(labels)
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.number):
        raise ValueError(
            f"`features` must be a matrix of numbers [n, d], but has shape "
            f"{rows.shape} and dtype {rows.dtype}. Flatten it: "
            "`features.reshape(n, -1)`."
        )
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            "`labels` must be a vector of integers, but has shape "
            f"{y.shape} and dtype {y.dtype}."
        )
    rows = rows.astype(float)
    if not np.all(np.isfinite(rows)):
        raise ValueError(
            "`features` must be finite, but some are NaN or infinite. Leave their "
            "examples out."
        )
    classes = np.unique(y)
    if len(classes) < at_least:
        raise ValueError(
            f"`labels` must name at least {at_least} classes, but only "
            f"{len(classes)} occur."
        )
    return classes, np.stack([rows[y == c].mean(axis=0) for c in classes])


def _cosines(means):
    """Cosines of centred means; NaN for one that is at the centre."""
    centred = means - means.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    rounding = 8 * np.finfo(np.float32).eps * np.abs(means).max()
    units = centred / np.where(norms > rounding, norms, np.nan)
    return units @ units.T


def _names(names, classes):
    """A name for each of some classes."""
    if names is None:
        return [str(c) for c in classes]
    if len(names) <= max(classes):
        raise ValueError(
            f"`names` must have an entry for each class up to {max(classes)}, but has "
            f"{len(names)}."
        )
    return [str(names[c]) for c in classes]


def _three(classes, found):
    """Three classes that occur."""
    chosen = found[:3] if classes is None else np.asarray(classes)
    if chosen.shape != (3,) or len(set(chosen.tolist()) & set(found.tolist())) < 3:
        raise ValueError(
            "`classes` must be three different classes that have examples, but was "
            f"{classes!r}, and examples are of {found.tolist()}."
        )
    return chosen.tolist()


def _rows(classifier, num_features, chosen):
    """The classifier's rows of three classes, or None."""
    if classifier is None:
        return None
    if not isinstance(classifier, tuple | list) or len(classifier) != 2:
        raise ValueError(
            "`classifier` must be None or a pair `(weight, bias)`, but was a "
            f"{type(classifier).__name__}. Pass `(weight, None)` if there is no bias."
        )
    weight = np.asarray(classifier[0], float)
    if weight.ndim != 2 or weight.shape[1] != num_features:
        flipped = weight.ndim == 2 and weight.shape[0] == num_features
        fix = " This looks like a Flax kernel [d, k]: transpose it." if flipped else ""
        raise ValueError(
            f"`classifier[0]` must have shape [k, d] with d = {num_features} features, "
            f"but has shape {weight.shape}.{fix}"
        )
    if len(weight) <= max(chosen) or not np.all(np.isfinite(weight)):
        raise ValueError(
            "`classifier[0]` must have a finite row for each class up to "
            f"{max(chosen)}, but has shape {weight.shape}, or entries that are not "
            "finite."
        )
    return weight[chosen]
