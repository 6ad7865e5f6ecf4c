"""Pictures of a path's tree: its lifetimes beside those of null models."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes

from jaxtheory.batching import check_count
from jaxtheory.dynamics.topology import MinimumSpanningTree
from jaxtheory.plot._style import (
    KERNEL,
    NULL,
    TEST,
    TRAIN,
    check_named,
    drawn_into,
    label_round_numbers,
)

Tree: TypeAlias = MinimumSpanningTree | Real[ArrayLike, " e"] | Sequence[float]

_NULL_COLOURS = (TEST, KERNEL, NULL)


def lifetimes(
    tree: Tree,
    nulls: Mapping[str, Tree | Sequence[Tree]] | None = None,
    *,
    num_bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the lengths of the edges of a path's minimum spanning tree as a histogram.

    They are the lifetimes of zero-dimensional persistent homology (Vietoris-Rips: the
    bars of its barcode, all of which begin at zero), on a logarithmic axis. Bars count
    edges of the path; lines are the counts in draws of null models, the mean over
    draws. Where they coincide, a sum of powers of the lifetimes says nothing that the
    null does not say. Edges of length zero, between points that coincide, have no place
    on the axis: their number is in the label.

    Args:
        tree: What `dynamics.topology.minimum_spanning_tree` returned, or its `lengths`.
        nulls: By label, the tree of one draw of a null or a list of those of several
            draws, of paths from `dynamics.topology.sign_flipped` and
            `ornstein_uhlenbeck`; up to three labels.
        num_bins: Number of bins, of equal width in the logarithm.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes: bars of the path, then a step line for each null.

    Raises:
        ValueError: A tree is no vector of lengths, negative or not finite, there is no
            positive length, `num_bins` is no positive integer, or there are more than
            three labels.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import plot
        >>> from jaxtheory.dynamics import topology
        >>> path = jnp.cumsum(jax.random.normal(jax.random.key(0), (50, 3)), axis=0)
        >>> null = topology.sign_flipped(path, key=jax.random.key(1))
        >>> tree, other = (
        ...     topology.minimum_spanning_tree(topology.pairwise_distances(points))
        ...     for points in (path, null)
        ... )
        >>> ax = plot.lifetimes(tree, {"flipped steps": other})
        >>> ax.get_xscale(), ax.get_legend().get_texts()[0].get_text()[:13]
        ('log', 'path, E₁ = 59')

    References:
        Birdal et al., arXiv:2111.13171; Andreeva et al., arXiv:2407.08723 (sums of
        these lifetimes).
    """
    check_count(num_bins=num_bins)
    own = _lengths("tree", tree)
    drawn = {} if nulls is None else _draws(nulls)
    everything = np.concatenate([own, *(np.concatenate(d) for d in drawn.values())])
    positive = everything[everything > 0]
    if positive.size == 0:
        raise ValueError(
            "`tree` must have an edge of positive length, but all points coincide."
        )
    low, high = positive.min(), positive.max()
    if not low < high:
        low, high = low / 2, high * 2
    edges = np.geomspace(low, high, num_bins + 1)
    edges[[0, -1]] = low, high  # the power of a logarithm misses them by rounding
    ax = drawn_into(ax)
    counts = np.histogram(own, edges)[0]
    text = _label("path", [own])
    ax.stairs(counts, edges, fill=True, color=TRAIN, alpha=0.55, label=text)
    for (name, draws), colour in zip(drawn.items(), _NULL_COLOURS, strict=False):
        mean = np.mean([np.histogram(one, edges)[0] for one in draws], axis=0)
        ax.stairs(mean, edges, color=colour, lw=1.6, label=_label(name, draws))
    ax.set_xscale("log")
    label_round_numbers(ax.xaxis)
    ax.set_xlabel("lifetime = edge length of the minimum spanning tree")
    ax.set_ylabel("number of edges")
    # A null may be one narrow peak, which passes behind the legend.
    ax.legend(framealpha=0.9, edgecolor="none", frameon=True)
    return ax


def _lengths(name, tree):
    """Edge lengths on the host in double precision; raise unless they are some."""
    found = tree.lengths if isinstance(tree, MinimumSpanningTree) else tree
    values = np.asarray(found, float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"`{name}` must be a `MinimumSpanningTree` or a vector of edge lengths, "
            f"but has shape {values.shape}. Call `minimum_spanning_tree(distances)`."
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(
            f"`{name}` must have finite lengths, none negative, but "
            f"{int(np.sum(~(np.isfinite(values) & (values >= 0))))} of {values.size} "
            "are not."
        )
    return values


def _draws(nulls):
    """Lists of lengths, by label."""
    check_named("nulls", nulls)
    if len(nulls) > len(_NULL_COLOURS):
        raise ValueError(
            f"`nulls` must have at most {len(_NULL_COLOURS)} labels, but has "
            f"{len(nulls)}. Draw the others into other axes."
        )
    return {name: _one_or_more(name, trees) for name, trees in nulls.items()}


def _one_or_more(name, trees):
    """The lengths of each draw, of one tree or of several."""
    single = isinstance(trees, MinimumSpanningTree) or not len(trees)
    single = single or np.ndim(getattr(trees[0], "lengths", trees[0])) == 0
    several = [trees] if single else trees
    return [_lengths(f"nulls[{name!r}]", tree) for tree in several]


def _label(name, draws):
    """What a histogram is of, its E_1 over draws, and how many edges it leaves out."""
    sums = [one.sum() for one in draws]
    text = f"{name}, E₁ = {np.mean(sums):.3g}"
    if len(sums) > 1:
        text += f" ± {np.std(sums, ddof=1):.2g}"
    zeros = sum(int(np.sum(one == 0)) for one in draws)
    return text + (f" ({zeros} edges of length 0)" if zeros else "")
