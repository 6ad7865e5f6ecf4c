"""What the portrait says of spectra and landscapes, of numbers on either side."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from sections_said import NAN, lacks, svg

from jaxtheory.linalg import SpectralDensity
from jaxtheory.portrait.sections import LANDSCAPE, SPECTRUM, _spectrum


def end(*values, trace=20.0, negative=0.01, error=0.001):
    return {
        "eigenvalues": list(values),
        "converged": True,
        "trace": trace,
        "trace_error": 0.5,
        "size": trace,
        "negative": negative,
        "negative_error": error,
        "per_decade": {"positive": [1.0, 50.0, 2.0], "negative": [40.0, 1.0, 0.0]},
    }


TOP = (9.0, 6.0, 5.0, 1.0, 0.9)  # three stand out


def spectrum(*values, before=0.2, after=0.01, loss=(1.0, 0.1), **changes):
    return {
        "start": end(*TOP, negative=before),
        "end": end(*(values or TOP), negative=after),
        "places": [-3.0, -1.0, 1.0],
        "num_params": 1_000,
        "num_top": 3,
        "num_iterations": 64,
        "num_probes": 8,
        "classes": True,
        "squared_error": True,
        "loss": list(loss),
    } | changes


@pytest.mark.parametrize(
    ("values", "changes", "expected", "verdict"),
    [
        (TOP, {}, "factor of 5, is after number 3 .*hold 100.0 % of the", "agrees"),
        ((9.0, 6.0, 1.0, 0.9), {}, "factor of 6, is after number 2 ", "agrees"),
        ((9.0, 1.0, 0.9, 0.8), {}, "factor of 9, is after number 1 ", "disagrees"),
        ((9.0, 8.0, 7.0, 6.0), {}, "no gap is wide enough to count", "measured"),
        ((-1.0, -2.0), {}, "no gap is wide enough to count", "measured"),
        ((9.0, -1.0, -2.0), {}, "factor of 1e.06, is after number 1 ", "disagrees"),
        (TOP, {"classes": False, "num_top": 1}, "^Among the 5 .*first holds 45.0", ""),
    ],
)
def test_outliers_are_counted(values, changes, expected, verdict):
    first, _ = SPECTRUM.findings(spectrum(*values, **changes))
    assert re.search(expected, first.text), first.text
    assert first.verdict == (verdict or "measured")


def test_outliers_that_were_not_found_are_not_judged():
    numbers = spectrum(end={**end(*TOP), "converged": False})
    first, _ = SPECTRUM.findings(numbers)
    assert first.verdict == "measured"
    assert "not all of them have converged" in first.text


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "agrees"),
        ({"before": 0.01, "after": 0.2}, "disagrees"),
        ({"before": 0.013}, "measured"),  # three standard errors are .0042
        ({"loss": (1.0, 0.9)}, "measured"),
        ({"squared_error": False}, "measured"),
    ],
)
def test_negative_curvature_goes_with_the_residuals(changes, verdict):
    _, second = SPECTRUM.findings(spectrum(**changes))
    assert second.verdict == verdict
    assert re.search("went from .* % ± 0.1 % to .* while the loss went", second.text)


def test_share_of_negative_curvature():
    nodes = jnp.array([[-1.0, 0.0, 3.0], [-2.0, 1.0, 3.0]])
    weights = jnp.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
    rest = (4, jnp.zeros(2), jnp.zeros(2, int), jnp.zeros(2, int))
    share, error = _spectrum._negative(SpectralDensity(nodes, weights, *rest))
    # .25 of 1 and .5 of 1.75
    assert share == pytest.approx(0.75 / 2.75)
    left = np.array([0.25 - share, 0.5 - 1.75 * share])
    assert error == pytest.approx(abs(left[0] - left[1]) / 2 / 1.375)


def test_spectrum_that_is_not_finite():
    for numbers in (spectrum(after=NAN), spectrum(NAN, 1.0)):
        assert lacks(SPECTRUM, numbers)
        assert "not finite" in svg(SPECTRUM, numbers)


def test_spectrum_picture_and_table():
    drawn = svg(SPECTRUM, spectrum())
    assert "start, negative side" in drawn
    assert "bars: the 3 largest" in drawn
    assert SPECTRUM.rows(spectrum()) == [
        ("trace of the Hessian", "20 ± 0.5", "started at 20"),
        ("share of negative curvature", "1.0 %", "started at 20.0 %"),
    ]


def landscape(*, share=(0.9, 0.06), beneath=(0.9, 1.0, 1.2), losses=None):
    return {
        "num_points": 51,
        "plane": True,
        "first": [-1.0, 0.0, 1.0],
        "second": [-1.0, 1.0],
        "losses": losses or [[1.0, 2.0], [0.1, 0.5], [1.0, 3.0]],
        "path": [[0.9, 0.5], [0.0, 0.2], [0.0, 0.0]],
        "share": list(share),
        "walk": [0.608, 0.152],
        "beneath": list(beneath),
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "60.8 % and 15.2 %; .* 90.0 % and 6.0 %: more than chance"),
        ({"share": (0.5, 0.2)}, "hold 50.0 % and 20.0 %: no more than chance"),
        ({}, "is 1 times .* from 0.9 to 1.2.*: the picture shows the loss that"),
        ({"beneath": (NAN, 1.0, 2.0)}, "is 1.5 times .* to 2.*leaves out counts"),
        ({"beneath": (0.5, 1.0, 1.1)}, "from 0.5 to 1.1.*leaves out counts"),
        ({"beneath": (NAN,)}, "nothing to judge"),
    ],
)
def test_landscape(changes, expected):
    found = LANDSCAPE.findings(landscape(**changes))
    assert re.search(expected, " ".join(finding.text for finding in found)), found
    assert {finding.verdict for finding in found} == {"measured"}


def test_landscape_picture_and_table():
    drawn = svg(LANDSCAPE, landscape())
    assert "90.0 % of variance (random walk 60.8 %)" in drawn
    assert "path of training" in drawn
    assert LANDSCAPE.rows(landscape()) == [
        ("path on its main plane", "96.0 %", "random walk 76.0 %")
    ]


def test_landscape_without_a_plane():
    numbers = {"num_points": 2, "plane": False}
    assert lacks(LANDSCAPE, numbers)
    assert "no plane to draw" in svg(LANDSCAPE, numbers)
    assert LANDSCAPE.rows(numbers)[0].measured == "no plane"
    nowhere = landscape(losses=[[NAN, NAN]] * 3)
    assert "no plane to draw" in svg(LANDSCAPE, nowhere)
    assert lacks(LANDSCAPE, landscape(share=(NAN, NAN)))
