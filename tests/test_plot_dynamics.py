"""Pictures of tails and gradient noise: what was given is on the axes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from jaxtheory import Estimate, linalg, plot
from jaxtheory.dynamics import noise, tails

NAN, INF = float("nan"), float("inf")
INDEX = Estimate(np.array([2.0, 1.5, INF]), np.array([0.1, 0.2, INF]), 100)
COUNTS = np.arange(1, 41)
CURVE = tails.HillPlot(
    num_tail=COUNTS,
    value=1.5 + 0 * COUNTS,
    lower=1.5 - 1 / COUNTS,
    upper=1.5 + 5 / COUNTS,
    threshold=1.0 / COUNTS,
    usable=COUNTS <= 30,
)
NOISE = tails.NoiseComparison(
    eigenvalues=np.array([9.0, 5.0, *np.linspace(2.0, 0.3, 18)]),
    ratio=0.25,
    variance=np.array(1.0),
    lower_edge=np.array(0.25),
    upper_edge=np.array(2.25),
    p_value=np.array(0.0),
    num_outliers=np.array(2),
    ks_distance=np.array(0.1),
    num_nonfinite=np.array(0),
    degenerate=np.array(False),
)
DRAWS = {
    "tail index": lambda ax: plot.tail_index([0, 1, 2], INDEX, ax=ax),
    "hill": lambda ax: plot.hill(CURVE, ax=ax),
    "spectrum": lambda ax: plot.weight_spectrum(NOISE, ax=ax),
    "noise scale": lambda ax: plot.noise_scale([0, 1], [3.0, 4.0], ax=ax),
}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def band(ax, number=0):
    """Ends of the filled interval at its first place."""
    points = ax.collections[number].get_paths()[0].vertices
    first = points[points[:, 0] == points[:, 0].min(), 1]
    return first.min(), first.max()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_axes_given_or_a_figure_of_its_own(draw, tmp_path, user_land):
    axes = Figure().subplots(1, 2)
    assert draw(axes[1]) is axes[1]
    assert axes[1].has_data()
    assert not axes[0].has_data()
    ax = draw(None)
    assert pyplot.get_fignums() == []
    ax.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match=r"`ax` must be one .* of type Figure"):
        draw(Figure())


def test_tail_index_with_two_standard_errors():
    ax = plot.tail_index([0, 10, 20], INDEX)
    line, reference = ax.lines
    assert line.get_xdata().tolist() == [0, 10, 20]
    assert line.get_ydata()[:2].tolist() == [2, 1.5]
    assert np.isnan(line.get_ydata()[2])  # an infinite index: no power law
    np.testing.assert_allclose(band(ax), (1.8, 2.2))
    assert reference.get_ydata() == [2, 2]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "tail index")
    layers = {"first": INDEX, "second": INDEX}
    ax = plot.tail_index([0, 10, 20], layers, quantity="trace", reference=None)
    assert legend(ax) == ["first", "second"]
    assert ax.get_ylabel() == "trace"


def test_hill_within_its_interval():
    ax = plot.hill(CURVE, theory=1.6)
    line, theory = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), COUNTS)
    assert np.all(line.get_ydata()[:30] == 1.5)
    assert np.all(np.isnan(line.get_ydata()[30:]))
    np.testing.assert_allclose(band(ax), (0.5, 6.5))
    assert theory.get_ydata() == [1.6, 1.6]
    # Ten points say at most 2; of one, 6.5 would press the curve to the axis.
    np.testing.assert_allclose(ax.get_ylim(), (0, 2.2))
    assert legend(ax) == ["Hill, with its interval", "theory 1.6"]


@pytest.mark.parametrize("ratio", [0.25, 4.0])
def test_spectrum_law_edge_and_outliers(ratio):
    ends = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    values = np.linspace(*ends, 30)[::-1].copy()
    values[:2] = 3 * ends[1], 2 * ends[1]
    given = NOISE._replace(
        eigenvalues=values, ratio=ratio, lower_edge=ends[0], upper_edge=ends[1]
    )
    ax = plot.weight_spectrum(given, num_bins=10)
    heights = [bar.get_height() for bar in ax.patches]
    width = ax.patches[0].get_width()
    np.testing.assert_allclose(np.sum(heights) * width, 1)
    law, edge, marks = ax.lines
    x, density = law.get_data()
    # Over what is not zero by shape both have area 1.
    np.testing.assert_allclose(np.trapezoid(density, x), 1, atol=0.02)
    assert edge.get_xdata() == [ends[1], ends[1]]
    assert marks.get_xdata().tolist() == values[:2].tolist()
    text = [f"{len(values)} eigenvalues", "2 outliers", "Marchenko-Pastur"]
    assert set(text) < set(legend(ax))


def test_a_far_outlier_and_a_spectrum_without_noise():
    values = NOISE.eigenvalues.copy()
    values[0] = 100.0
    ax = plot.weight_spectrum(NOISE._replace(eigenvalues=values))
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlim()[1] > 100
    none = NOISE._replace(degenerate=np.array(True), upper_edge=np.array(NAN))
    ax = plot.weight_spectrum(none)
    assert len(ax.lines) == 0
    assert legend(ax) == ["20 eigenvalues"]


def test_spectrum_as_measured():
    weights = jax.random.normal(jax.random.key(0), (60, 30))
    found = tails.spectrum_against_marchenko_pastur(weights, centre=False)
    ax = plot.weight_spectrum(found)
    edge = float(linalg.marchenko_pastur_edges(0.5, variance=found.variance)[1])
    np.testing.assert_allclose(ax.lines[1].get_xdata(), edge, rtol=1e-6)
    assert len(ax.lines) == 2  # noise has no outlier to mark


def test_noise_scale_of_numbers_records_and_estimates():
    ax = plot.noise_scale([0, 1], [8.0, -1.0], batch_size=64)
    assert ax.get_yscale() == "log"
    assert ax.lines[0].get_ydata()[0] == 8
    assert np.isnan(ax.lines[0].get_ydata()[1])  # an estimate of it may be negative
    assert ax.lines[1].get_ydata() == [64, 64]
    assert legend(ax) == ["noise scale", "batch size 64"]
    record = noise.noise_scale(
        lambda w, x: w * x, lambda out, y: out - y, jnp.ones(()), *[jnp.arange(3.0)] * 2
    )
    ax = plot.noise_scale([7], jax.tree.map(lambda a: a[None], record))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [record.noise_scale])
    two = SimpleNamespace(
        noise_scale=Estimate(np.array([8.0, 9.0]), np.ones(2), 5),
        undetermined=np.array([False, True]),
    )
    ax = plot.noise_scale([0, 1], two)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [8, NAN])
    np.testing.assert_allclose(band(ax), (6, 10))


def test_what_cannot_be_drawn_is_refused(user_land):
    with pytest.raises(ValueError, match=r"`index` must have the fields .* type list"):
        plot.tail_index([0, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"`index\['a'\].value` must have one number"):
        plot.tail_index([0, 1], {"a": INDEX})
    with pytest.raises(ValueError, match="`steps` must not decrease"):
        plot.tail_index([0, 2, 1], INDEX)
    with pytest.raises(ValueError, match="`index` must hold something to draw"):
        plot.tail_index([0, 2], {})
    with pytest.raises(ValueError, match="`reference` must be a finite number"):
        plot.tail_index([0, 1, 2], INDEX, reference=NAN)
    with pytest.raises(ValueError, match=r"`curve` must be what .* of type Estimate"):
        plot.hill(INDEX)
    with pytest.raises(ValueError, match="`curve` must be one curve that is usable"):
        plot.hill(CURVE._replace(usable=np.zeros(40, bool)))
    with pytest.raises(ValueError, match="`theory` must be a positive number"):
        plot.hill(CURVE, theory=-1.0)
    with pytest.raises(ValueError, match=r"`spectrum` must be one entry .* type dict"):
        plot.weight_spectrum({"w": NOISE})
    bad = NOISE._replace(eigenvalues=NOISE.eigenvalues * NAN, num_nonfinite=np.array(3))
    with pytest.raises(ValueError, match=r"`spectrum` must hold .* 3 entries"):
        plot.weight_spectrum(bad)
    with pytest.raises(ValueError, match="`num_bins` must be"):
        plot.weight_spectrum(NOISE, num_bins=0)
    with pytest.raises(ValueError, match=r"`scale` must have one number .* \(1,\)"):
        plot.noise_scale([0, 1], [1.0])
    with pytest.raises(ValueError, match="`batch_size` must be"):
        plot.noise_scale([0, 1], [1.0, 2.0], batch_size=0)
