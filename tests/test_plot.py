"""Pictures: what is on the axes is what was given, named and with units."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jaxtheory import kernels, plot
from jaxtheory._types import Estimate
from jaxtheory.dynamics import History

NAN = float("nan")
KERNEL = np.diag([4.0, 1.0, 2.0]).astype(np.float32)
RECORDS = {"steps": [0, 10, 20], "alignment": [0.2, 0.5, 0.6], "distance": [0, 1, 2]}
ERRORS = {
    "network": Estimate(2.0, 0.5, 100),
    "initial": Estimate(jnp.array(3.0), jnp.array(0.25), 100),
    "infinite": Estimate(4.0, 0.0, 100),
}
N = np.array([10, 20, 40])
CURVE = kernels.learning_curve(
    np.arange(1.0, 101) ** -1.5, 1 / np.arange(1.0, 101), num_examples=N
)
DRAWS = {
    "spectrum": lambda ax: plot.kernel_spectrum(np.ones(3), ax=ax),
    "evolution": lambda ax: plot.kernel_evolution(RECORDS, ax=ax),
    "comparison": lambda ax: plot.comparison(ERRORS, ax=ax),
    "curves": lambda ax: plot.learning_curves({"theory": (N, CURVE)}, ax=ax),
}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_axes_given_are_drawn_into_and_returned(draw):
    axes = Figure().subplots(1, 2)
    assert draw(axes[1]) is axes[1]
    assert axes[1].has_data()
    assert not axes[0].has_data()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_without_axes_a_figure_of_its_own(draw, tmp_path):
    ax = draw(None)
    assert pyplot.get_fignums() == []
    assert not ax.spines["top"].get_visible()
    ax.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_many_axes_are_refused(draw, user_land):
    with pytest.raises(ValueError, match=r"`ax` must be one .* of type ndarray"):
        draw(Figure().subplots(1, 2))
    with pytest.raises(ValueError, match=r"`ax` must be one .* of type Figure"):
        draw(Figure())


def test_spectrum_of_kernels():
    summary = kernels.spectrum_summary(jnp.asarray(KERNEL), ridge=1.0)
    ax = plot.kernel_spectrum({"start": summary, "end": np.array([1.0, 8.0])})
    start, start_mark, end, end_mark = ax.lines
    assert start.get_xdata().tolist() == [1, 2, 3]
    assert start.get_ydata().tolist() == [4, 2, 1]
    assert end.get_ydata().tolist() == [8, 1]
    dimension = 4 / 5 + 2 / 3 + 1 / 2
    assert start_mark.get_xdata() == pytest.approx([dimension] * 2)
    assert end_mark.get_xdata() == [2, 2]
    assert legend(ax) == [
        "start: effective dimension 1.97",
        "end: effective dimension 2",
    ]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "index" in ax.get_xlabel()
    assert "units of the kernel" in ax.get_ylabel()


def test_spectrum_leaves_out_what_counts_as_zero():
    ax = plot.kernel_spectrum(np.array([1.0, 1e-3, 1e-8, 0.0, -1e-8]))
    assert ax.lines[0].get_ydata() == pytest.approx([1, 1e-3])
    assert legend(ax) == ["effective dimension 2"]


@pytest.mark.parametrize("value", [NAN, 0.0])
def test_spectrum_without_anything_to_draw(value):
    ax = plot.kernel_spectrum({"end": np.full(3, value), "start": np.ones(2)})
    assert legend(ax)[0] in ("end: not finite", "end: effective dimension 0")
    assert len(ax.lines[0].get_ydata()) == 0
    assert ax.lines[1].get_ydata().tolist() == [1, 1]


def test_spectrum_that_is_none(user_land):
    with pytest.raises(ValueError, match=r"spectra.'end'.. must be a .*\(3, 3\)"):
        plot.kernel_spectrum({"end": KERNEL})
    with pytest.raises(ValueError, match=r"spectra.'end'.. must be a .* is TargetSpec"):
        plot.kernel_spectrum({"end": kernels.target_spectrum(KERNEL, KERNEL)})
    with pytest.raises(ValueError, match=r"`spectra` must be .* has shape \(0,\)"):
        plot.kernel_spectrum(np.ones(0))
    with pytest.raises(ValueError, match="`spectra` must hold something"):
        plot.kernel_spectrum({})


def test_evolution_on_two_scales_of_one_time():
    ax = plot.kernel_evolution(RECORDS)
    _, twin = ax.figure.axes
    (alignment,), (distance,) = ax.lines, twin.lines
    for line, name in ((alignment, "alignment"), (distance, "distance")):
        assert line.get_xdata().tolist() == RECORDS["steps"]
        assert line.get_ydata().tolist() == RECORDS[name]
    assert ax.get_xlabel() == "step"
    assert ax.get_shared_x_axes().joined(ax, twin)
    assert ax.get_ylim() == pytest.approx((0, 1.05))
    assert twin.get_ylim() == pytest.approx((0, 2.1))
    for side, line in ((ax, alignment), (twin, distance)):
        assert side.get_ylabel() == line.get_label()
        assert to_hex(side.yaxis.label.get_color()) == line.get_color()


def test_evolution_of_a_history():
    records = {name: np.array(RECORDS[name]) for name in ("alignment", "distance")}
    history = History(None, np.array(RECORDS["steps"]), records, {}, None)  # type: ignore
    ax = plot.kernel_evolution(history)
    assert ax.lines[0].get_xydata().tolist() == [[0, 0.2], [10, 0.5], [20, 0.6]]


def test_evolution_of_odd_curves():
    negative = RECORDS | {"alignment": [-0.4, 0.2, NAN], "distance": [0, 0, NAN]}
    ax = plot.kernel_evolution(negative)
    assert ax.get_ylim() == pytest.approx((-0.42, 1.05))
    assert ax.figure.axes[1].get_ylim() == pytest.approx((0, 1.05))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": [0, 1]}, "`distance` must have one number .* 3 steps, but has 2"),
        ({"alignment": [[0, 1, 2]]}, "`alignment` must be a vector .*\\(1, 3\\)"),
        ({"steps": []}, "`steps` must be a vector of at least one"),
    ],
)
def test_evolution_that_is_none(changes, message):
    with pytest.raises(ValueError, match=message):
        plot.kernel_evolution(RECORDS | changes)
    with pytest.raises(ValueError, match=r"must hold steps, distance, but .*'ali"):
        plot.kernel_evolution({"alignment": [1.0]})


def test_comparison_is_dots_and_intervals():
    ax = plot.comparison(ERRORS, metric="test error (%)")
    dots, first, reference = ax.lines
    assert dots.get_xydata().tolist() == [[2, 0], [3, 1], [4, 2]]
    assert first.get_xydata().tolist() == [[2, 0]]
    assert reference.get_xdata() == [2, 2]
    (intervals,) = ax.collections
    ends = [segment[:, 0].tolist() for segment in intervals.get_segments()]
    assert ends == [[1, 3], [2.5, 3.5], [4, 4]]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ERRORS)
    bottom, top = ax.get_ylim()
    assert bottom > top
    assert ax.get_xlim()[0] == 0
    assert ax.get_xlabel() == "test error (%), ± 2 standard errors"
    assert texts(ax) == ["2", "3", "4"]


def test_comparison_says_what_is_not_finite(tmp_path):
    ax = plot.comparison({"a": Estimate(NAN, NAN, 1), "b": Estimate(1.0, NAN, 1)})
    assert texts(ax) == ["not finite", "1"]
    ax.figure.savefig(tmp_path / "figure.png")


def test_comparison_of_nothing(user_land):
    with pytest.raises(ValueError, match="`errors` must hold something"):
        plot.comparison({})
    with pytest.raises(ValueError, match=r"'a'.. must be one number .* \(2,\) and"):
        plot.comparison({"a": Estimate(jnp.ones(2), 0.0, 1)})
    with pytest.raises(
        ValueError, match=r"'a'.. must be a `jaxtheory.Estimate.* float"
    ):
        plot.comparison({"a": 0.3})


def test_learning_curves_are_lines_and_points():
    measured = Estimate(np.array([3.0, 2.0]), np.array([0.5, 0.25]), 10)
    plain = (N[:2], np.array([1.0, 0.5]))
    ax = plot.learning_curves(
        {"ridge 0": (N, CURVE)}, {"ridge 0": (N[1:], measured), "network": plain}
    )
    line, points, *_ = ax.lines
    assert line.get_xdata().tolist() == N.tolist()
    assert line.get_ydata().tolist() == CURVE.test_error.tolist()
    assert points.get_xydata().tolist() == [[20, 3], [40, 2]]
    assert points.get_color() == line.get_color()
    bars = ax.collections[0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [[2, 4], [1.5, 2.5]]
    assert legend(ax) == ["ridge 0", "network"]
    assert ax.get_xlabel() == "training examples $n$"
    assert ax.get_ylabel() == "mean squared test error, ± 2 standard errors"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


@pytest.mark.parametrize(
    ("ends", "shown"),
    [([0.62, 0.97], "0.7 0.8 0.9"), ([0.05, 0.9], "0.05 0.1 0.2 0.5 1")],
)
def test_learning_curve_labels_round_numbers(ends, shown):
    ax = plot.learning_curves({"theory": (N[:2], np.array(ends))})
    low, high = ax.get_ylim()
    labels = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    seen = [label.get_text() for y, label in labels if low < y < high]
    assert seen == shown.split()


def test_learning_curve_without_errors_does_not_promise_them():
    ax = plot.learning_curves({}, {"GP": (N, N**-1.0)}, metric="error")
    assert ax.get_ylabel() == "error"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((N[:2], CURVE), "theory.'a'.. must have one error for each of its 2 .* has 3"),
        ((N,), "theory.'a'.. must be a pair.* has 1 entries"),
        ((N, Estimate(N, N[:2], 1)), "but has 3, with 2 standard errors"),
        ((N, 1.0), "must be a vector of at least one number"),
    ],
)
def test_learning_curves_that_are_none(pair, message, user_land):
    with pytest.raises(ValueError, match=message):
        plot.learning_curves({"a": pair})
    with pytest.raises(ValueError, match="`theory` must hold something"):
        plot.learning_curves({})
