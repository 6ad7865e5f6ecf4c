"""What the portrait says of tails, weights and lifetimes, and that it is so."""

import re

import jax
import numpy as np
import pytest
from sections_said import NAN, lacks, svg

from jaxtheory.dynamics import tails
from jaxtheory.portrait.sections import LIFETIMES, TAILS, WEIGHTS, _lifetimes, _weights

# --- tails


def noise_tails(hill, error, stable, width):
    both = lambda value, error: {"value": [2.5, value], "standard_error": [0.1, error]}
    return {
        "steps": [0, 100],
        "num_tail": 50,
        "hill": both(hill, error),
        "log_moment": both(stable, width),
    }


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((3.7, 0.5, 1.8, 0.1), "index of 3.70 ± 1.00 .* so their variance is finite"),
        ((1.4, 0.2, 1.8, 0.1), "1.40 ± 0.40 .* variance is infinite, as far"),
        ((2.5, 0.5, 1.8, 0.1), "on which side of 2 is not decided"),
    ],
)
def test_variance_of_gradient_noise(numbers, expected):
    first, _ = TAILS.findings(noise_tails(*numbers))
    assert re.search(expected, first.text), first.text
    assert first.verdict == "measured"


@pytest.mark.parametrize(
    ("numbers", "expected", "verdict"),
    [
        ((3.7, 0.5, 1.95, 0.1), "1.95 ± 0.20: not told apart from a Gau", "measured"),
        ((3.7, 0.5, 1.2, 0.1), "and this tail is light: examples differ", "disagrees"),
        ((1.3, 0.2, 1.2, 0.1), "1.20 ± 0.20, as its tail", "agrees"),
        ((3.7, 0.5, 1.7, 0.1), "too near 2 for the tail to decide", "measured"),
        ((2.2, 0.3, 1.2, 0.1), "which the tail does not decide", "measured"),
    ],
)
def test_noise_as_a_stable_law(numbers, expected, verdict):
    _, second = TAILS.findings(noise_tails(*numbers))
    assert expected in second.text, second.text
    assert second.verdict == verdict


def test_tails_in_the_table_and_of_no_noise():
    (row,) = TAILS.rows(noise_tails(3.7, 0.5, 1.8, 0.1))
    assert row[1:] == ("3.7 ± 1", "as a stable law 1.8")
    assert lacks(TAILS, noise_tails(float("inf"), NAN, 1.8, 0.1))
    assert "as a stable law" in svg(TAILS, noise_tails(3.7, 0.5, 1.8, 0.1))


# --- weights


@pytest.fixture(scope="module")
def spectra():
    """Numbers of a matrix of noise, and of the same with one direction added."""
    w = jax.random.normal(jax.random.key(0), (64, 32)) / 8
    measure = lambda w: {
        name: _weights._plain(found)
        for name, found in tails.weight_spectra(
            {"kernel": w}, key=jax.random.key(1), level=1e-3
        ).items()
    }
    u, s, v = np.linalg.svd(w, full_matrices=False)
    s[0] *= 3
    return measure(w), measure((u * s) @ v)


def test_weights_beside_noise(spectra):
    noise, spiked = spectra
    first, second = WEIGHTS.findings({"start": noise, "end": noise})
    assert "of 1 matrices 0 had an outlier" in first.text
    assert (first.verdict, second.verdict) == ("agrees", "measured")
    assert "After training 0 of 1 have one" in second.text
    numbers = {"start": noise, "end": spiked}
    first, second = WEIGHTS.findings(numbers)
    assert "After training 1 of 1 have outliers, at most 1 (['kernel']" in second.text
    (times,) = re.findall(r"eigenvalue (\S+) times the edge", second.text)
    assert 6 < float(times) < 11  # nine times one at the edge
    outliers, rank = WEIGHTS.rows(numbers)
    assert outliers[1:] == ("1", "at the start 0")
    assert rank.quantity == "stable rank of ['kernel']"
    drawn = svg(WEIGHTS, numbers)
    assert "1 outlier" in drawn
    assert "eigenvalue of ['kernel']" in drawn
    first, _ = WEIGHTS.findings({"start": spiked, "end": spiked})
    assert first.verdict == "disagrees"


def test_large_entries_are_named_as_a_reason(spectra):
    heavy = {"['kernel']": spectra[1]["['kernel']"] | {"heavy_entries": True}}
    text = WEIGHTS.findings({"start": spectra[0], "end": heavy})[1].text
    assert text.endswith("; large single entries may be why in 1 of them.")


def test_weights_that_are_not_finite(spectra):
    one = spectra[0]["['kernel']"]
    bad = {"['kernel']": one | {"eigenvalues": [float("inf"), 1.0]}}
    numbers = {"start": spectra[0], "end": bad}
    assert lacks(WEIGHTS, numbers)
    assert "not finite" in svg(WEIGHTS, numbers)
    assert WEIGHTS.rows(numbers)[0].measured == "not finite"


# --- lifetimes


def lifetimes(distance=0.5, largest=0.1):
    lengths = [*np.linspace(0.1, 2.0, 20)]
    null = lambda distance: {
        "lifetimes": lengths,
        "distance": distance,
        "largest_among_draws": largest,
    }
    return {
        "lifetimes": lengths,
        "nulls": {"sign_flipped": null(distance), "ou": null(0.9)},
    }


def test_lifetimes_beside_their_nulls():
    (finding,) = LIFETIMES.findings(lifetimes())
    assert "The 20 lifetimes have a median of 1.05 and a largest of 2." in finding.text
    assert "0.50 from steps of random sign (single draws: at most 0.10)" in finding.text
    assert finding.text.endswith("they are neither's.")
    (finding,) = LIFETIMES.findings(lifetimes(distance=0.05))
    assert finding.text.endswith(
        "nothing in them is told apart from steps of random sign."
    )
    assert LIFETIMES.rows(lifetimes()) == [("longest lifetime", "2", "median 1.05")]
    assert "Ornstein-Uhlenbeck" in svg(LIFETIMES, lifetimes())


def test_lifetimes_of_no_path():
    for lengths in ([], [0.0] * 20, [1.0] * 5, [1.0] * 19 + [float("inf")]):
        numbers = {"lifetimes": lengths, "nulls": {}}
        assert lacks(LIFETIMES, numbers)
        assert LIFETIMES.rows(numbers)[0].measured == "no tree"
        assert "no tree to draw" in svg(LIFETIMES, numbers)


def test_distance_of_distribution_functions():
    # .6 of one and .2 of the others, in the mean, are at most 3.
    own, draws = np.arange(1.0, 6), [np.arange(3.0, 8), np.arange(3.0, 8)]
    assert _lifetimes._distance(own, draws) == pytest.approx(0.4)
    assert _lifetimes._distance(own, [own, own]) == 0
