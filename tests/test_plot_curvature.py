"""Pictures of curvature and landscapes: what was given is on the axes, with units."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from jaxtheory import curvature, linalg, plot
from jaxtheory.curvature.landscape import (
    BezierCurve,
    Interpolation,
    Projection,
    Slice1D,
    Slice2D,
    trajectory_plane,
)

NAN = float("nan")
A = jnp.linspace(0.0, 1.0, 5)
LINE = Slice1D(A, (A - 0.5) ** 2)
BETWEEN = Interpolation(A, A * (1 - A), jnp.array(0.25))
ZERO = jnp.array(0.0)
CURVE = BezierCurve(jnp.ones(2), A, 0 * A, ZERO, ZERO, jnp.ones(3))
U, V = jnp.linspace(-1.0, 1.0, 7), jnp.linspace(-2.0, 2.0, 9)
PLANE = Slice2D(U, V, 0.1 + U[:, None] ** 2 + 4 * (V[None] - 1) ** 2)
PATH = np.array([[0.9, -1.5], [0.2, 0.0], [0.0, 0.0]])
THRESHOLD = curvature.stability_threshold("gradient_descent", learning_rate=0.1)
EIGHT = lx.MatrixLinearOperator(3 * jnp.eye(8), lx.symmetric_tag)
NODES = linalg.spectral_density(EIGHT, key=jax.random.key(0), num_probes=2)._replace(
    nodes=jnp.array([[0.0, 1.0], [0.0, 9.0]]),
    weights=jnp.array([[0.9, 0.1], [0.9, 0.1]]),
)
DRAWS = {
    "density": lambda ax: plot.spectral_density(NODES, ax=ax),
    "log density": lambda ax: plot.log_spectral_density(NODES, ax=ax),
    "sharpness": lambda ax: plot.sharpness([0, 1], [1.0, 2.0], 3.0, ax=ax),
    "slice": lambda ax: plot.slice_1d(BETWEEN, ax=ax),
    "plane": lambda ax: plot.slice_2d(PLANE, path=PATH, ax=ax),
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


def test_density_with_a_bulk_and_a_threshold():
    ax = plot.spectral_density(NODES, width=0.1, bulk=(-0.5, 2.0), threshold=12.0)
    curve, threshold = ax.lines
    grid, values = curve.get_xdata(), curve.get_ydata()
    height = 1 / (0.1 * np.sqrt(2 * np.pi))
    for node, share in ((0.0, 0.9), (1.0, 0.05), (9.0, 0.05)):
        (peak,) = values[grid == node]
        np.testing.assert_allclose(peak, share * height, rtol=1e-5)
    assert threshold.get_xdata() == [12, 12]
    assert legend(ax) == ["smoothed by 0.1", "bulk -0.5 to 2", "threshold 12"]
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.get_ylim()[0], 0.9e-6 * height, rtol=1e-5)
    bulk = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    np.testing.assert_allclose([bulk.x0, bulk.x1], [-0.5, 2.0], atol=1e-6)


def test_density_of_an_operator_with_one_eigenvalue():
    density = linalg.spectral_density(EIGHT, key=jax.random.key(0), num_probes=2)
    ax = plot.spectral_density(density)
    peak = np.argmax(ax.lines[0].get_ydata())
    np.testing.assert_allclose(ax.lines[0].get_xdata()[peak], 3, rtol=0.01)


def test_log_density_has_a_line_for_each_sign():
    nodes = jnp.array([[0.1, 10.0], [-0.1, 10.0]])
    ax = plot.log_spectral_density(NODES._replace(nodes=nodes), width=0.05)
    height = 8 / (0.05 * np.sqrt(2 * np.pi))  # eight eigenvalues
    for line, peaks in zip(
        ax.lines, ({0.1: 0.45, 10.0: 0.1}, {0.1: 0.45}), strict=True
    ):
        places, values = line.get_xdata(), line.get_ydata()
        for node, share in peaks.items():
            near = np.argmin(np.abs(np.log10(places / node)))
            np.testing.assert_allclose(values[near], share * height, rtol=0.05)
    assert np.isnan(ax.lines[1].get_ydata()[np.argmin(np.abs(places - 10))])
    assert legend(ax) == ["positive", "negative"]
    with pytest.raises(ValueError, match="`density` must have a node that is not zero"):
        plot.log_spectral_density(NODES._replace(nodes=jnp.zeros((2, 2))))


def test_density_refuses(user_land):
    with pytest.raises(ValueError, match=r"`density` must be what .* of type list"):
        plot.spectral_density([1.0])
    with pytest.raises(ValueError, match="`density` must have finite nodes"):
        plot.spectral_density(NODES._replace(nodes=NODES.nodes.at[0, 0].set(NAN)))
    with pytest.raises(ValueError, match="`bulk` must be the lower and the upper end"):
        plot.spectral_density(NODES, bulk=(2.0, 1.0))
    with pytest.raises(ValueError, match="`width` must be a positive number"):
        plot.spectral_density(NODES, width=0.0)
    for width in ("a", np.ones(2)):
        with pytest.raises(ValueError, match="`width` must be a positive number"):
            plot.spectral_density(NODES, width=width)
    with pytest.raises(ValueError, match=r"`width` must be a positive .* was None"):
        plot.log_spectral_density(NODES, width=None)
    with pytest.raises(ValueError, match=r"Pass one .*`threshold.full_batch`"):
        plot.spectral_density(NODES, threshold=THRESHOLD)
    with pytest.raises(ValueError, match="`threshold` must be a number, but was nan"):
        plot.spectral_density(NODES, threshold=NAN)


def test_sharpness_against_one_threshold_and_against_many():
    ax = plot.sharpness([0, 5, 10], [1.0, 19.0, NAN], 20.0)
    curve, edge = ax.lines
    assert curve.get_xdata().tolist() == [0, 5, 10]
    assert curve.get_ydata()[:2].tolist() == [1, 19]
    assert edge.get_ydata().tolist() == [20, 20, 20]
    assert legend(ax) == ["sharpness, last 0.95 of the threshold", "threshold 20"]
    assert ax.get_xlabel() == "step"
    ax = plot.sharpness([0, 5], [-1.0, 3.0], [2.0, 1.0])
    assert ax.lines[1].get_ydata().tolist() == [2, 1]
    assert ax.get_ylim()[0] < -1
    assert legend(ax) == ["sharpness, last 3.00 of the threshold", "threshold"]
    assert legend(plot.sharpness([0], [NAN], 1.0)) == ["sharpness", "threshold 1"]


def test_sharpness_refuses(user_land):
    with pytest.raises(ValueError, match="`steps` must not decrease"):
        plot.sharpness([5, 0], [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="`sharpness` must have one number for each"):
        plot.sharpness([0, 1], [1.0], 1.0)
    with pytest.raises(ValueError, match="`threshold` must have one number for each"):
        plot.sharpness([0, 1], [1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"`steps` must be a vector .* \(1, 2\)"):
        plot.sharpness([[0, 1]], [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match=r"Pass one .*`threshold.full_batch`"):
        plot.sharpness([0, 1, 2], [1.0, 2.0, 3.0], THRESHOLD)
    with pytest.raises(ValueError, match=r"`threshold` must be .* all are NaN"):
        plot.sharpness([0, 1], [1.0, 2.0], NAN)


def test_slices_and_what_lies_between_networks():
    ax = plot.slice_1d({"straight": BETWEEN, "curve": CURVE})
    assert legend(ax) == ["straight: barrier 0.25", "curve: barrier 0"]
    assert ax.lines[0].get_xdata().tolist() == A.tolist()
    assert ax.lines[0].get_ydata().tolist() == BETWEEN.losses.tolist()
    assert "second (1)" in ax.get_xlabel()
    ax = plot.slice_1d(LINE._replace(losses=LINE.losses.at[4].set(jnp.inf)))
    assert ax.get_legend() is None
    assert "lengths of the direction" in ax.get_xlabel()
    assert ax.get_ylabel() == "mean loss"
    assert np.isnan(ax.lines[0].get_ydata()[4])


def test_points_are_drawn_from_left_to_right(user_land):
    """Coordinates may come in any order, the smallest here in the middle."""
    order = np.array([4, 2, 0, 3, 1])
    shuffled = Slice1D(A[order], LINE.losses[order])
    ax = plot.slice_1d({1: shuffled, 2: LINE})
    for line in ax.lines:
        np.testing.assert_array_equal(line.get_xydata(), np.transpose(LINE))
    assert legend(ax) == ["1", "2"]
    rows, columns = np.array([3, 0, 6, 1, 5, 2, 4]), np.arange(9)[::-1]
    losses = PLANE.losses[rows][:, columns]
    found = plot.slice_2d(Slice2D(U[rows], V[columns], losses)).collections[0]
    expected = plot.slice_2d(PLANE).collections[0]
    for one, other in zip(found.get_paths(), expected.get_paths(), strict=True):
        np.testing.assert_array_equal(one.vertices, other.vertices)


def test_contours_have_the_first_direction_to_the_right():
    ax = plot.slice_2d(PLANE)
    filled = ax.collections[0]
    levels = filled.levels
    low, high = PLANE.losses.min(), PLANE.losses.max()
    np.testing.assert_allclose(levels, np.geomspace(low, high, 20), rtol=1e-6)
    deepest = np.mean(filled.get_paths()[0].vertices, axis=0)
    np.testing.assert_allclose(deepest, [0, 1], atol=0.2)  # where the minimum is
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (-2, 2)
    assert ax.get_xlabel() == "first direction (its lengths)"
    assert [a.get_ylabel() for a in ax.figure.axes[1:]] == ["mean loss"]


@pytest.mark.parametrize("given", [PATH, Projection(jnp.asarray(PATH), jnp.ones(3))])
def test_the_path_has_a_start_and_an_end(given):
    ax = plot.slice_2d(PLANE, path=given)
    path, start, end = ax.lines
    np.testing.assert_allclose(path.get_xydata(), PATH, rtol=1e-6)
    np.testing.assert_allclose(start.get_xydata(), PATH[:1], rtol=1e-6)
    np.testing.assert_allclose(end.get_xydata(), PATH[-1:], rtol=1e-6)
    assert legend(ax) == ["path of training", "start", "end"]


def test_a_plane_of_training_states_its_explained_variance():
    plane = trajectory_plane(jnp.array([[4.0, 0.0], [2.0, 1.0], [0.0, 0.0]]))
    ax = plot.slice_2d(PLANE, path=plane)
    assert ax.get_xlabel() == "principal direction 1 (92.3 % of variance)"
    assert ax.get_ylabel() == "principal direction 2 (7.7 % of variance)"
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), plane.coordinates)


@pytest.mark.parametrize(
    "losses",
    [
        PLANE.losses.at[0, 0].set(jnp.inf).at[1, 0].set(NAN),
        PLANE.losses - 1,  # negative: levels are even
        jnp.ones((7, 9)),
        jnp.zeros((7, 9)),
        jnp.full((7, 9), 1e30),
    ],
    ids=["not finite", "negative", "constant", "zero", "large"],
)
def test_planes_that_are_hard_to_draw(losses, tmp_path):
    ax = plot.slice_2d(PLANE._replace(losses=losses), num_levels=5)
    finite = np.asarray(losses)[np.isfinite(losses)]
    levels = ax.collections[0].levels
    assert levels[0] == finite.min()
    assert levels[-1] >= finite.max()
    ax.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


def test_slices_refuse(user_land):
    with pytest.raises(ValueError, match=r"`lines` must be a `Slice1D`.* Slice2D"):
        plot.slice_1d(PLANE)
    with pytest.raises(ValueError, match=r"`lines\['a'\]` must be .* type list"):
        plot.slice_1d({"a": [1.0]})
    with pytest.raises(ValueError, match="`lines` must hold something to draw"):
        plot.slice_1d({})
    with pytest.raises(ValueError, match=r"`found` must be what .* of type Slice1D"):
        plot.slice_2d(LINE)
    with pytest.raises(ValueError, match="`found` must hold a finite loss"):
        plot.slice_2d(PLANE._replace(losses=jnp.full((7, 9), NAN)))
    for num in (1, 2.5, None, "20"):
        with pytest.raises(ValueError, match="`num_levels` must be an integer of at"):
            plot.slice_2d(PLANE, num_levels=num)
    with pytest.raises(ValueError, match="`lines` must hold a finite loss"):
        plot.slice_1d(Slice1D(A, A * NAN))
    stacked = [jnp.stack([leaf, leaf]) for leaf in LINE]
    with pytest.raises(ValueError, match=r"`lines` .* Of a stack draw one"):
        plot.slice_1d(Slice1D(*stacked))
    with pytest.raises(ValueError, match="`found` must have a loss for each"):
        plot.slice_2d(PLANE._replace(second=U))
    with pytest.raises(ValueError, match=r"`found.first` must be finite, but 1 of 7"):
        plot.slice_2d(PLANE._replace(first=U.at[0].set(NAN)))
    with pytest.raises(ValueError, match=r"`path` must have two .* shape \(3, 3\)"):
        plot.slice_2d(PLANE, path=np.ones((3, 3)))
