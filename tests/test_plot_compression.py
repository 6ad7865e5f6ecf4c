"""The picture of compression: lines, intervals and rings are where the numbers are."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from jaxtheory import plot
from jaxtheory._types import Estimate

SIZES = np.array([4000.0, 1000.0, 250.0])
RUNS = np.array([[0.97, 0.95, 0.5], [0.99, 0.97, 0.7]])
CURVES = {
    "nodes": (SIZES, RUNS),
    "entries": (SIZES[::-1], Estimate(RUNS[0, ::-1], np.full(3, 0.01), 500)),
}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lines_intervals_and_rings():
    ax = Figure().subplots()
    assert plot.compression(CURVES, whole=np.array([0.97, 0.99]), ax=ax) is ax
    nodes, ring, entries, no_ring, whole = ax.lines
    np.testing.assert_allclose(nodes.get_xydata()[:, 0], SIZES[::-1])
    np.testing.assert_allclose(nodes.get_xydata()[:, 1], [60, 96, 98])
    # Whole 98 %: of the nodes 98 % is within a point, of the entries 97 % is.
    assert ring.get_xydata().tolist() == [[4000, 98]]
    np.testing.assert_allclose(entries.get_xydata()[:, 1], [50, 95, 97])
    assert no_ring.get_xydata().tolist() == [[4000, 97]]
    assert whole.get_ydata() == pytest.approx([98, 98])
    # Two runs: their standard error is half of the difference.
    band, other = (c for c in ax.collections if isinstance(c, PolyCollection))
    low, high = band.get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((60 - 20, 98 + 2))
    low, high = other.get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((50 - 2, 97 + 2))
    assert legend(ax) == [
        "nodes: 4,000 bytes",
        "entries: 4,000 bytes",
        "whole network 98.0 % ± 2.0",
    ]
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel() == "test accuracy, %, ± 2 standard errors"
    assert ax.get_legend().get_title().get_text() == "smallest within 1 point (rings)"


def test_tolerance_and_errors_turn_it_around():
    ax = plot.compression(CURVES, whole=0.98, tolerance=0.03)
    assert legend(ax)[:2] == ["nodes: 1,000 bytes", "entries: 1,000 bytes"]
    shares = {"a": ([0.5, 0.1, 0.01], [0.02, 0.03, 0.4]), "b": ([0.1], [0.2])}
    drawn = plot.compression(shares, whole=0.02, size="share", metric="error")
    assert legend(drawn) == ["a: 10 % kept", "b", "whole network 2.0 %"]
    assert len(drawn.lines) == 4  # of b nothing is within the tolerance: no ring
    assert not any(isinstance(c, PolyCollection) for c in drawn.collections)
    assert drawn.get_ylabel() == "test error, %"
    assert drawn.lines[0].get_xdata().tolist() == [1, 10, 50]  # per cent
    assert (ax.get_yscale(), drawn.get_yscale()) == ("linear", "log")
    none = plot.compression({"a": ([10.0], [0.0])}, whole=0.0, metric="error")
    assert none.get_yscale() == "linear"
    large = {"a": ([20_000, 500], [1, 1])}
    assert legend(plot.compression(large, whole=1.0))[0] == "a: 500 bytes"
    assert legend(plot.compression(large, whole=1.0, size="numbers"))[0] == (
        "a: 500 numbers"
    )


def test_pictures_that_cannot_be(user_land):
    with pytest.raises(ValueError, match="`curves` must hold something to draw"):
        plot.compression({}, whole=0.9)
    with pytest.raises(ValueError, match=r"`curves\['a'\]` must be a pair"):
        plot.compression({"a": ([1.0],)}, whole=0.9)
    with pytest.raises(ValueError, match="one accuracy for each of its 2 sizes"):
        plot.compression({"a": ([1.0, 2], [0.5])}, whole=0.9)
    with pytest.raises(ValueError, match="sizes that are positive"):
        plot.compression({"a": ([0.0], [0.5])}, whole=0.9)
    with pytest.raises(ValueError, match=r"in \[0, 1\], but one is not"):
        plot.compression({"a": ([1.0], [50])}, whole=0.9)
    with pytest.raises(ValueError, match=r"`whole` must have accuracies"):
        plot.compression({"a": ([1.0], [0.5])}, whole=97)
    with pytest.raises(ValueError, match="at least two seeds"):
        plot.compression({"a": ([1.0], np.ones((1, 1)))}, whole=0.9)
    with pytest.raises(ValueError, match="`tolerance` must be"):
        plot.compression({"a": ([1.0], [0.5])}, whole=0.9, tolerance=1.0)
    with pytest.raises(ValueError, match="`size` must be"):
        plot.compression({"a": ([1.0], [0.5])}, whole=0.9, size="kB")  # type: ignore
