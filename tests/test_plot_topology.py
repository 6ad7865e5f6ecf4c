"""Pictures of lifetimes: the counts on the axes are those of NumPy."""

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from jaxtheory import plot
from jaxtheory.dynamics import topology

LENGTHS = np.random.default_rng(0).lognormal(size=200)
THREE: Any = (np.zeros((3, 2), int), np.ones(3), np.array(0))
NULLS = {
    "A": [LENGTHS * 2, LENGTHS * 4],
    "B": topology.MinimumSpanningTree(*THREE),
}


def histograms(ax) -> list[Any]:
    return [stairs.get_data() for stairs in ax.patches]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_bars_count_the_edges_of_the_path_and_lines_the_mean_of_draws():
    ax = Figure().subplots()
    assert plot.lifetimes(LENGTHS, NULLS, num_bins=11, ax=ax) is ax
    path, first, second = histograms(ax)
    assert path.values.sum() == 200
    assert first.values.sum() == 200  # the mean of two draws of 200
    assert second.values.sum() == 3
    ratios = path.edges[1:] / path.edges[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert path.edges[0] == LENGTHS.min()
    assert path.edges[-1] == 4 * LENGTHS.max()
    inside = (path.edges[3] <= LENGTHS) & (path.edges[4] > LENGTHS)
    assert path.values[3] == inside.sum()
    counts = [np.histogram(draw, path.edges)[0] for draw in NULLS["A"]]
    np.testing.assert_array_equal(first.values, np.mean(counts, axis=0))
    sums = [2 * LENGTHS.sum(), 4 * LENGTHS.sum()]
    assert legend(ax) == [
        f"path, E₁ = {LENGTHS.sum():.3g}",
        f"A, E₁ = {np.mean(sums):.3g} ± {np.std(sums, ddof=1):.2g}",
        "B, E₁ = 3",
    ]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel().startswith("lifetime")
    assert ax.get_ylabel() == "number of edges"


def test_without_axes_a_figure_of_its_own(tmp_path):
    ax: Any = plot.lifetimes([0.0, 0.0, 1.0])
    assert pyplot.get_fignums() == []
    assert legend(ax) == ["path, E₁ = 1 (2 edges of length 0)"]
    assert histograms(ax)[0].values.sum() == 1
    ax.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("tree", "options", "match"),
    [
        ([[1.0]], {}, r"`tree` must be a `MinimumSpanningTree` .* \(1, 1\)"),
        ([1.0, np.nan], {}, "`tree` must have finite lengths, .* 1 of 2"),
        ([-1.0], {}, "`tree` must have finite lengths, none negative"),
        ([0.0], {}, "`tree` must have an edge of positive length"),
        ([1.0], {"nulls": {}}, "`nulls` must hold something to draw"),
        (
            [1.0],
            {"nulls": {key: [1.0] for key in "abcd"}},
            "`nulls` must have at most",
        ),
        ([1.0], {"nulls": {"a": [[np.inf]]}}, r"`nulls\['a'\]` must have finite"),
        ([1.0], {"nulls": {"a": []}}, r"`nulls\['a'\]` must be"),
        ([1.0], {"num_bins": 0}, "`num_bins` must be"),
        ([1.0], {"ax": 3}, "`ax` must be one pair of matplotlib axes"),
    ],
)
def test_refuses(tree, options, match, user_land):
    with pytest.raises(ValueError, match=match):
        plot.lifetimes(tree, **options)
