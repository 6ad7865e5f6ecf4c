"""Pictures of collapse: what was measured is on the axes, beside what theory has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from jaxtheory import collapse, plot
from jaxtheory._types import Estimate

NAN = float("nan")
STEPS = [0, 10, 20]
TRAIN = {"nc1": [2.0, 0.5, 0.1], "nc2": [1.0, NAN, 0.2], "nc4": [0.5, 0.1, 0.0]}
TEST = {"nc1": [2.0, 0.8, 0.7], "nc2": [1.0, 0.5, 0.4], "nc4": [0.5, 0.2, 0.1]}
VALUES = np.exp(2.0 - 0.5 * np.arange(5) + [0.0, 0.1, -0.1, 0.1, 0.0])
LAW = collapse.fit_separation_law(jnp.asarray(VALUES))
LINE = collapse.fit_layer_line(jnp.asarray(VALUES), scale="log")
LABELS = np.repeat(np.arange(4), 5)
NOISE = np.random.default_rng(0).normal(size=(20, 6))
FRAME = np.eye(4, 6) - np.eye(4, 6)[:4].mean(axis=0)
FEATURES = 3 + 2 * FRAME[LABELS] + 0.1 * NOISE
MEANS = np.stack([FEATURES[c == LABELS].mean(axis=0) for c in range(4)])
DRAWS = {
    "curves": lambda ax: plot.collapse_curves(STEPS, TRAIN, TEST, ax=ax),
    "law": lambda ax: plot.separation_law(LAW, ax=ax),
    "line": lambda ax: plot.layer_line(VALUES, LINE, scale="log", ax=ax),
    "cosines": lambda ax: plot.class_mean_cosines(FEATURES, LABELS, ax=ax),
    "plane": lambda ax: plot.simplex_plane(FEATURES, LABELS, ax=ax),
}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_axes_given_are_drawn_into_and_returned(draw):
    axes = Figure().subplots(1, 2)
    assert draw(axes[1]) is axes[1]
    assert axes[1].has_data()
    assert not axes[0].has_data()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_without_axes_a_figure_of_its_own(draw, tmp_path, user_land):
    ax = draw(None)
    assert pyplot.get_fignums() == []
    ax.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match=r"`ax` must be one .* of type Figure"):
        draw(Figure())


# --- curves


def test_curves_of_both_sets_in_one_colour_a_measure():
    ax = plot.collapse_curves(STEPS, TRAIN, TEST)
    lines = ax.lines[:6]
    assert [line.get_linestyle() for line in lines] == ["-"] * 3 + ["--"] * 3
    colours = [line.get_color() for line in lines]
    assert colours[:3] == colours[3:]
    assert len(set(colours)) == 3
    for line, values in zip(lines, [*TRAIN.values(), *TEST.values()], strict=True):
        assert line.get_xdata().tolist() == STEPS
        # Zero is drawn at the floor, and what is not finite not at all.
        expected = np.maximum(values, 1e-4)
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert legend(ax) == ["NC1", "NC2", "NC4", "train", "test"]
    assert ax.get_yscale() == "log"


def test_curves_as_training_records_them():
    """`statistics` under `scan`, whose fields are stacked; some are None."""
    labels = jnp.asarray(LABELS)

    def at(_, scale):
        return 0, collapse.statistics(scale * FEATURES, labels, num_classes=4)

    recorded = jax.lax.scan(at, 0, jnp.array([1.0, 2.0]))[1]
    ax = plot.collapse_curves([0, 1], recorded)
    assert legend(ax) == ["NC1", "NC2"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), recorded.nc1)
    names = ["nc2_equinorm", "within_class_trace"]
    ax = plot.collapse_curves([0, 1], recorded, recorded, measures=names, floor=1e-9)
    assert legend(ax)[:2] == ["NC2 equinorm", "within class trace"]
    for line, name in zip(ax.lines[:4], names * 2, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), getattr(recorded, name))


def test_curves_of_a_loop_of_ones_own():
    """A list of what `statistics` returned at each step."""
    found = collapse.statistics(jnp.asarray(FEATURES), jnp.asarray(LABELS))
    steps = [found, found._replace(nc1=found.nc1 / 2), found]
    ax = plot.collapse_curves(STEPS, steps, steps)
    assert legend(ax)[:2] == ["NC1", "NC2"]
    expected = np.array([1.0, 0.5, 1.0]) * float(found.nc1)
    for line in (ax.lines[0], ax.lines[2]):
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STEPS, {"nc1": [1.0]}), r"`train\['nc1'\]` must have one number for each"),
        ((STEPS, {}), "`measures` must name at least one field"),
        ((STEPS, TRAIN, {"nc1": [1.0] * 3}), r"`test` must hold a curve 'nc2'"),
        (([[0]], TRAIN), r"`steps` must be a vector .* has shape \(1, 1\)"),
        ((STEPS, {"nc1": 1.0}), r"`train\['nc1'\]` must be a vector"),
        ((STEPS, [1.0, 0.5, 0.1]), "`train` must be what .* is of type list"),
        ((STEPS, TRAIN, 0.1), "`test` must be what .* is of type float"),
    ],
)
def test_curves_refuse(arguments, message, user_land):
    with pytest.raises(ValueError, match=message):
        plot.collapse_curves(*arguments)


def test_curves_refuse_options(user_land):
    with pytest.raises(ValueError, match="`train` must hold a curve 'nc3'"):
        plot.collapse_curves(STEPS, TRAIN, measures=["nc1", "nc3"])
    with pytest.raises(ValueError, match=r"`measures` must name .* is 'nc1'"):
        plot.collapse_curves(STEPS, TRAIN, measures="nc1")
    with pytest.raises(ValueError, match="`floor` must be a positive number"):
        plot.collapse_curves(STEPS, TRAIN, floor=0.0)


# --- laws


def test_law_with_its_line_and_p_value():
    ax = plot.separation_law(LAW, p_value=jnp.array(0.031), quantity="residual")
    points, line = ax.lines
    np.testing.assert_allclose(points.get_ydata(), VALUES, rtol=1e-6)
    slope, start = np.polyfit(np.arange(5), np.log(VALUES), 1)
    expected = np.exp(start + slope * np.arange(5))
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-5)
    correlation = np.corrcoef(np.arange(5), np.log(VALUES))[0, 1]
    text = f"factor {np.exp(slope):.2f}, r = {correlation:.3f}, p = 0.031"
    assert legend(ax) == ["measured", text]
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", "layer")
    assert ax.get_ylabel() == "residual"


def test_laws_side_by_side_with_the_names_of_layers():
    law = LAW._replace(names=("input", *(f"layer_{i}" for i in range(1, 5))))
    laws = {"before": law._replace(values=1 / law.values), "after": law}
    ax = plot.separation_law(laws, p_value={"after": 0.5}, input_layer="exclude")
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        *("input", "1", "2", "3", "4")
    ]
    assert len(ax.lines) == 4
    assert ax.lines[3].get_xdata().tolist() == [1, 2, 3, 4]
    before, fit, after, with_p = legend(ax)
    assert (before, after) == ("before", "after")
    assert "p =" not in fit
    assert with_p.endswith(", p = 0.5")
    ax = plot.separation_law({"a": law._replace(names=("embedding_table",) * 5)})
    assert ax.get_xticklabels()[0].get_rotation() == 30


def test_law_that_is_not_finite_has_points_and_no_line():
    law = collapse.fit_separation_law(jnp.array([4.0, jnp.inf, 1.0, 0.0]))
    ax = plot.separation_law(law)
    assert len(ax.lines) == 1
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4.0, NAN, 1.0, NAN])
    assert legend(ax) == ["measured"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_line_through_any_measure(scale):
    line = collapse.fit_layer_line(jnp.asarray(VALUES), scale=scale)
    names = [f"block_{i}" for i in range(5)]
    ax = plot.layer_line(VALUES, line, scale=scale, names=names, quantity="angle")
    fitted = np.polyfit(np.arange(5), np.log(VALUES) if scale == "log" else VALUES, 1)
    expected = np.polyval(fitted, np.arange(5))
    expected = np.exp(expected) if scale == "log" else expected
    np.testing.assert_allclose(ax.lines[1].get_ydata(), expected, rtol=1e-5)
    number = f"factor {np.exp(fitted[0]):.2f}"
    number = f"slope {fitted[0]:.3g}" if scale == "linear" else number
    assert legend(ax)[1].startswith(f"{number}, r = -0.9")
    assert (ax.get_yscale(), ax.get_ylabel()) == (scale, "angle")


def test_laws_refuse(user_land):
    refused = [
        ({"laws": {}}, "`laws` must hold something to draw"),
        ({"laws": LINE}, "`laws` must be what .* type LayerLine"),
        ({"laws": LAW, "p_value": 2.0}, "`p_value` must be between 0 and 1"),
        ({"laws": LAW, "p_value": Estimate(0.1, 0.0, 9)}, "`Estimate`. Pass its"),  # pyright: ignore
        ({"laws": LAW, "p_value": {"b": 0.1}}, r"`p_value` must have labels .*\['b'\]"),
        ({"laws": {"a": LAW, "b": LAW}, "p_value": 0.1}, "which of the laws"),
        ({"laws": LAW, "input_layer": "drop"}, "`input_layer` must be .*'drop'"),
        (
            {"laws": {"a": LAW, "b": LAW._replace(values=jnp.ones(3))}},
            r"`laws\['b'\]` must have as many layers .* 5, but has 3",
        ),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            plot.separation_law(**arguments)
    with pytest.raises(ValueError, match=r"`line` must be what .* SeparationLaw"):
        plot.layer_line(VALUES, LAW)
    with pytest.raises(ValueError, match=r"`scale` must be .* was 'log10'"):
        plot.layer_line(VALUES, LINE, scale="log10")
    with pytest.raises(ValueError, match=r"`names` must have one entry .* 5 layers"):
        plot.layer_line(VALUES, LINE, names=["a"])
    with pytest.raises(ValueError, match="`values` must be a vector"):
        plot.layer_line(VALUES[None], LINE)


# --- class means


def test_cosines_of_class_means():
    order = np.random.default_rng(1).permutation(20)
    ax = plot.class_mean_cosines(FEATURES[order], LABELS[order])
    drawn = ax.images[0].get_array()
    for i in range(4):
        for j in range(4):
            a, b = MEANS[i] - MEANS.mean(axis=0), MEANS[j] - MEANS.mean(axis=0)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert drawn.mask[i, j] == (i == j)
            if i != j:
                assert drawn[i, j] == pytest.approx(cosine, abs=1e-12)
    low, high = ax.images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(-1 / 3)
    assert high - low == pytest.approx(0.5)  # nearly a simplex: the smallest scale
    assert len(ax.texts) == 12
    bar = ax.figure.axes[-1]
    assert bar.get_ylabel() == "cosine around the centre (line: -0.33, simplex)"


def test_cosines_count_the_classes_that_occur():
    kept = LABELS != 1
    names = ["zero", "one", "two", "three"]
    ax = plot.class_mean_cosines(FEATURES[kept], LABELS[kept], names=names)
    assert ax.images[0].get_array().shape == (3, 3)
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert shown == ["zero", "two", "three"]
    assert "-0.50, simplex" in ax.figure.axes[-1].get_ylabel()


def test_cosines_of_a_mean_at_the_centre_and_of_many_classes():
    line = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    drawn = plot.class_mean_cosines(line, np.arange(3)).images[0].get_array()
    assert drawn.mask.tolist() == [[True, True, False], [True] * 3, [False, True, True]]
    assert drawn[0, 2] == pytest.approx(-1)
    many = plot.class_mean_cosines(np.eye(15), np.arange(15))
    assert len(many.texts) == 0  # no room


def test_plane_has_the_means_at_the_corners_of_a_simplex():
    """In any rotation and scale, with the rest of space out of sight."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    features, frame = (7 * FRAME[LABELS] + 1) @ turn, 0.2 * FRAME @ turn
    ax = plot.simplex_plane(
        features, LABELS, classes=(3, 0, 2), classifier=(frame, None)
    )
    triangle, *rest = ax.lines
    corners = triangle.get_xydata()[:3]
    np.testing.assert_allclose(np.linalg.norm(corners, axis=1), 1)
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, np.sqrt(3))
    for corner, mean, row in zip(corners, rest[:3], rest[3:6], strict=True):
        np.testing.assert_allclose(mean.get_xydata()[0], corner, atol=1e-12)
        np.testing.assert_allclose(row.get_xydata(), [[0, 0], corner], atol=1e-12)
        assert row.get_color() == mean.get_color()
    assert legend(ax) == ["simplex", "class 3", "class 0", "class 2", "classifier row"]


def test_plane_keeps_the_shape_of_what_lies_in_it():
    ax = plot.simplex_plane(FEATURES, LABELS, names="abcd")
    means = np.concatenate([line.get_xydata() for line in ax.lines[1:4]])
    distances = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)
    ratio = distances(means)[0, 1] / distances(MEANS)[0, 1]
    np.testing.assert_allclose(distances(means), ratio * distances(MEANS[:3]))
    assert np.mean(np.sum(means**2, axis=1)) == pytest.approx(1)
    assert np.linalg.norm(means.mean(axis=0)) < 1e-12
    for points, mean in zip(ax.collections, means, strict=True):
        assert points.get_offsets().shape == (5, 2)
        np.testing.assert_allclose(points.get_offsets().mean(axis=0), mean, atol=1e-12)
    assert legend(ax) == ["simplex", "class a", "class b", "class c"]
    assert ax.get_aspect() == 1


ONE = np.ones(20, int)
CLASS_MEANS_REFUSED = [
    ({"features": FEATURES[:, 0]}, r"`features` must be a matrix .* shape \(20,\)"),
    ({"features": FEATURES * NAN}, "`features` must be finite"),
    ({"features": FEATURES[:3]}, "`labels` must have as many examples"),
    ({"labels": LABELS * 1.0}, "`labels` must be a vector of integers"),
    ({"labels": ONE}, "`labels` must name at least . classes, but only 1 occur"),
    ({"names": ["a"]}, r"`names` must have an entry for each class up to \d"),
]
PLANE_REFUSED = [
    ({"labels": LABELS % 2}, "`labels` must name at least 3 classes, but only 2"),
    ({"classes": (0, 1)}, r"`classes` must be three different .* was \(0, 1\)"),
    ({"classes": (0, 1, 1)}, "`classes` must be three different"),
    ({"classes": (0, 1, 7)}, "`classes` must be three .* of \\[0, 1, 2, 3\\]"),
    ({"features": FEATURES[:, :1]}, "`features` must have class means that span"),
    ({"features": 0 * FEATURES}, "`features` must have class means that span"),
    ({"classifier": FRAME}, "`classifier` must be None or a pair"),
    (
        {"classifier": (FRAME.T, None)},
        r"`classifier\[0\]` must have shape .*: transpose it",
    ),
    (
        {"classifier": (FRAME[:2], None)},
        r"`classifier\[0\]` must have a finite row .* up to 2",
    ),
    ({"classifier": (NAN * FRAME, None)}, r"`classifier\[0\]` must have a finite row"),
]


@pytest.mark.parametrize(("changes", "message"), CLASS_MEANS_REFUSED)
def test_class_means_refuse(changes, message, user_land):
    for draw in (plot.class_mean_cosines, plot.simplex_plane):
        with pytest.raises(ValueError, match=message):
            draw(**({"features": FEATURES, "labels": LABELS} | changes))


@pytest.mark.parametrize(("changes", "message"), PLANE_REFUSED)
def test_plane_refuses(changes, message, user_land):
    with pytest.raises(ValueError, match=message):
        plot.simplex_plane(**({"features": FEATURES, "labels": LABELS} | changes))
