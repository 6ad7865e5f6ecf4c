"""The loss over the plane that holds most of the training path."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import plot
from jaxtheory.curvature import landscape
from jaxtheory.portrait._numbers import compact, only, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_POINTS = 25
# The picture reaches so much further than the path, as a share of the path's extent.
_MARGIN = 0.25
# Beneath its shadow a path's own loss is shown up to such a factor, or it is not.
_ALIKE = 1.5


def record(plan):
    """The parameters themselves: a sketch would not lead back to them."""
    return {"params": lambda state: state.params}


def read(plan, history):
    """The path's plane, the loss on it, and what of the path it does not show."""
    iterates, steps = history.records["params"], np.asarray(history.steps)
    flat = [np.reshape(leaf, (len(steps), -1)) for leaf in jax.tree.leaves(iterates)]
    finite = np.all([np.isfinite(rows).all(axis=1) for rows in flat], axis=0)
    iterates = jax.tree.map(lambda leaf: np.asarray(leaf)[finite], iterates)
    moved = any((rows[finite] != rows[finite][-1:]).any() for rows in flat)
    numbers = {"num_points": int(finite.sum()), "plane": False}
    if numbers["num_points"] < 3 or not moved:
        return numbers
    plane = landscape.trajectory_plane(iterates)
    if int(plane.rank) < 2:
        return numbers
    path = np.asarray(plane.coordinates, float)
    found = landscape.slice_2d(
        plan.apply_fn,
        plan.loss_fn,
        plane.origin,
        plan.x_train,
        plan.y_train,
        directions=plane.directions,
        first=_axis(path[:, 0]),
        second=_axis(path[:, 1]),
    )
    own = np.asarray(history.records["evaluation"]["train"]["loss"], float)[finite]
    with np.errstate(divide="ignore", invalid="ignore"):
        beneath = np.asarray(_beneath(plan, plane), float) / own
    return numbers | {
        "plane": True,
        "first": only(found.first),
        "second": only(found.second),
        "losses": [only(row) for row in np.asarray(found.losses)],
        "path": [only(point) for point in path],
        "share": only(plane.explained_variance),
        "walk": only(landscape.random_walk_variance(2)),
        "beneath": only(beneath),
    }


def _axis(coordinates):
    """Evenly over the extent of the path and a little more."""
    low, high = coordinates.min(), coordinates.max()
    margin = _MARGIN * (high - low)
    return jnp.linspace(low - margin, high + margin, _POINTS)


def _beneath(plan, plane):
    """The loss at the point of the plane that is nearest to each iterate."""

    def loss(place):
        move = lambda origin, directions: (
            origin + jnp.tensordot(place, directions, 1, precision="highest")
        )
        params = jax.tree.map(move, plane.origin, plane.directions)
        outputs = plan.apply_fn(params, plan.x_train)
        return jnp.mean(plan.loss_fn(outputs, plan.y_train))

    return jax.jit(lambda places: jax.lax.map(loss, places))(plane.coordinates)


def draw(numbers, ax):
    """Contours of the loss with the path's shadow on them."""
    if not numbers["plane"] or not np.isfinite(numbers["losses"]).any():
        ax.text(0.5, 0.5, "no plane to draw", transform=ax.transAxes, ha="center")
        return
    names = ("first", "second", "losses")
    found = landscape.Slice2D(*(jnp.asarray(numbers[name]) for name in names))
    plot.slice_2d(found, path=np.asarray(numbers["path"]), ax=ax)
    _narrow(ax)
    (one, two), walk = numbers["share"], [percent(s) for s in numbers["walk"]]
    ax.set_xlabel(f"direction 1: {percent(one)} of variance (random walk {walk[0]})")
    ax.set_ylabel(f"direction 2: {percent(two)} (random walk {walk[1]})")


def _narrow(ax):
    """Put the colour bar close by: beside others in a grid there is little room."""
    filled = ax.collections[0]
    wide = filled.colorbar
    ticks, form = wide.get_ticks(), wide.ax.yaxis.get_major_formatter()
    wide.remove()
    beside = ax.inset_axes((1.02, 0.0, 0.03, 1.0))
    bar = ax.figure.colorbar(filled, cax=beside, label="mean loss")
    bar.set_ticks(ticks)
    beside.yaxis.set_major_formatter(form)
    beside.minorticks_off()
    bar.outline.set_visible(False)


def findings(numbers):
    """How much of the path the plane holds, and whether its loss is the path's."""
    if not numbers["plane"]:
        why = f"the path has {numbers['num_points']:,} finite records on no plane"
        return [lacking(why)]
    one, two = numbers["share"]
    if not np.isfinite([one, two]).all():
        return [lacking("the variance of the path is not finite")]
    walk = [percent(share) for share in numbers["walk"]]
    more = one + two > sum(numbers["walk"])
    text = (
        "Of a random walk's variance theory expects the first two principal directions "
        f"to hold {walk[0]} and {walk[1]}; of that of this path, seen at "
        f"{numbers['num_points']:,} records, they hold {percent(one)} and "
        f"{percent(two)}: {'more' if more else 'no more'} than chance would put on a "
        "plane."
    )
    return [Finding(text, "measured"), _shown(numbers)]


def _shown(numbers):
    """Whether the loss beneath the path is the loss that training saw."""
    ratios = np.asarray(numbers["beneath"])
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return lacking("no loss beneath the path is finite")
    low, middle, high = ratios.min(), np.median(ratios), ratios.max()
    text = (
        "Beneath the path the plane's loss is "
        f"{compact(middle)} times training's own (median over records; from "
        f"{compact(low)} to {compact(high)}): "
    )
    shows = low > 1 / _ALIKE and high < _ALIKE
    text += (
        "the picture shows the loss that training saw."
        if shows
        else "what the plane leaves out counts, and the picture shows less than "
        "training saw."
    )
    return Finding(text, "measured")


def rows(numbers):
    """The plane's share of the path."""
    if not numbers["plane"]:
        return [Row("path on its main plane", "no plane", "3 records needed")]
    walk = percent(sum(numbers["walk"]))
    share = percent(sum(numbers["share"]))
    return [Row("path on its main plane", share, f"random walk {walk}")]


SECTION = Section(
    "landscape",
    "The loss around the path",
    always,
    record,
    nothing,
    read,
    draw,
    findings,
    rows,
)
