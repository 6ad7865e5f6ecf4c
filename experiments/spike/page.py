"""Table, claims and figure of the spike that one step makes."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.claims import Claim, claims_table, mean_and_error
from experiments.spike.theory import predicted
from jaxtheory import linalg


def claims(config: Any, result: Any) -> list[Claim]:
    """What the theory says, and what the spectra do."""
    aligned, control = (result.measured[name] for name in result.measured)
    return [
        *_spectral_claims(result, aligned),
        *_control_claims(config, control),
        *_error_claims(result, aligned),
    ]


def _spectral_claims(result, found):
    below = result.strengths < 1
    # Where the linear part of the step is all that matters: far above, the rest shows.
    above = (result.strengths > 1) & (np.arange(len(below)) < len(below) - 1)
    few, many = found.num_outliers[:, below], found.num_outliers[:, above]
    share = lambda hit: mean_and_error(np.mean(hit, axis=1))
    away = found.eigenvalues[:, above, 0] / result.location[None, above] - 1
    apart = found.overlap[:, above] - result.overlap[None, above]
    worst = lambda values: float(np.max(np.abs(np.mean(values, axis=0))))
    text = "BBP (math/0403022): above the threshold,"
    return [
        Claim("below the threshold, outliers at most", float(np.max(few)), 0.0, 0.0),
        Claim("above: share of runs with exactly one", share(many == 1)[0], 1.0, 1.0),
        Claim(f"{text} place over predicted less 1", worst(away), 0.0, 0.05),
        Claim(f"{text} squared overlap less predicted", worst(apart), 0.0, 0.05),
    ]


def _control_claims(config, control):
    """A target without a linear part: chance is 1/d."""
    mean, error = mean_and_error(np.mean(control.overlap, axis=1))
    text = "no linear part in the teacher: mean squared overlap, in units of chance"
    return [Claim(text, mean * config.dim, -np.inf, 5.0, error * config.dim)]


def _error_claims(result, found):
    """The cubic part is .36 of the target; no linear function has any of it."""
    start, largest = found.test_error[:, 0], found.test_error[:, -1]
    moderate = found.test_error[:, -2]
    rows = [
        ("features at the start: error at least that of a linear fit", start, 0.36, 1),
        (
            f"after a step of {result.strengths[-2]:g} thresholds: still",
            moderate, 0.36, 1,
        ),
        (
            f"of {result.strengths[-1]:g} thresholds (grows with N): below, 2205.01445",
            largest, 0, 0.36,
        ),
    ]  # fmt: skip
    return [Claim(text, *_order(values, low, high)) for text, values, low, high in rows]


def _order(values, low, high):
    """Fields of a claim from values over seeds and a range."""
    mean, error = mean_and_error(values)
    return mean, low, high, error


def report(config: Any, result: Any) -> str:
    """Outliers, places, overlaps and errors by strength; and the claims."""
    head = f"{'spike / threshold':<20}" + "".join(
        f"{name:<22}"
        for name in ("outliers", "first eigenvalue", "overlap^2", "test error")
    )
    lines = []
    for name, found in result.measured.items():
        lines += [f"target: {name}", head]
        for i, strength in enumerate(result.strengths):
            place, place_error = mean_and_error(found.eigenvalues[:, i, 0])
            overlap, overlap_error = mean_and_error(found.overlap[:, i])
            error, error_error = mean_and_error(found.test_error[:, i])
            outliers = " ".join(str(int(n)) for n in found.num_outliers[:, i])
            lines.append(
                f"{strength:<20g}{outliers:<22}"
                f"{f'{place:.3f} +- {place_error:.3f}':<22}"
                f"{f'{overlap:.4f} +- {overlap_error:.4f}':<22}"
                f"{error:.4f} +- {error_error:.4f}"
            )
        lines.append("")
    theory = ", ".join(
        f"{strength:g}: {place:.3f}, {overlap:.4f}"
        for strength, place, overlap in zip(
            result.strengths, result.location, result.overlap, strict=True
        )
    )
    lines += [f"predicted first eigenvalue and overlap^2: {theory}", ""]
    return "\n".join([*lines, claims_table(claims(config, result))])


def draw(config: Any, result: Any) -> Figure:
    """The spectrum below and above the threshold, overlaps, and test errors."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    _draw_spectra(axes[0], config, result)
    _draw_overlaps(axes[1], config, result)
    _draw_errors(axes[2], result)
    return figure


def _draw_spectra(ax, config, result):
    """Histograms of eigenvalues, the law of noise, and where the outlier should be."""
    found = next(iter(result.measured.values()))
    chosen = [int(np.argmax(result.strengths < 1)), len(result.strengths) - 2]
    for i in chosen:
        ax.hist(
            found.eigenvalues[:, i].ravel(),
            bins=60,
            density=True,
            alpha=0.5,
            label=f"spike {result.strengths[i]:g} thresholds",
        )
    low, high = result.edges
    x = np.linspace(low, high, 400)
    ratio = config.dim / config.width
    law = linalg.marchenko_pastur_density(x, ratio=ratio)
    ax.plot(x, law, color="black", lw=1, label="Marchenko-Pastur")
    ax.axvline(result.location[chosen[1]], color="black", ls=":", label="BBP")
    ax.set(xlabel="eigenvalue of the first layer", ylabel="density", yscale="log")
    ax.set_ylim(bottom=1e-3)
    ax.legend(frameon=False, fontsize=8)


def _draw_overlaps(ax, config, result):
    """Squared cosine with the teacher against the spike."""
    inner = slice(len(result.strengths) - 1)
    x = result.strengths[inner]
    for name, found in result.measured.items():
        mean = np.mean(found.overlap[:, inner], axis=0)
        spread = np.std(found.overlap[:, inner], axis=0, ddof=1)
        ax.errorbar(x, mean, spread, fmt="o", ms=4, capsize=2, label=name)
    grid = np.linspace(0, np.max(x), 400)
    ax.plot(grid, predicted(config, grid)[1], color="black", lw=1, label="BBP")
    ax.axvline(1, color="gray", ls=":", lw=1)
    ax.set(xlabel="spike over threshold", ylabel="squared overlap with the teacher")
    ax.legend(frameon=False, fontsize=8)


def _draw_errors(ax, result):
    """Test error of ridge regression on the features."""
    found = next(iter(result.measured.values()))
    x = np.arange(len(result.strengths))
    mean = np.mean(found.test_error, axis=0)
    spread = np.std(found.test_error, axis=0, ddof=1)
    ax.errorbar(x, mean, spread, fmt="o", ms=4, capsize=2)
    ax.axhline(0.36, color="gray", ls=":", lw=1, label="best linear function")
    ax.set_xticks(x, [f"{strength:g}" for strength in result.strengths])
    ax.set(xlabel="spike over threshold", ylabel="relative test error of ridge")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
