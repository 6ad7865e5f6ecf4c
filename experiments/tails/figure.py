"""The figure of the heavy tails."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.tails.ranking import LEVEL
from jaxtheory import plot

COLOURS = (plot.TRAIN, plot.TEST, plot.KERNEL, plot.ACCENT)


def draw(config: Any, result: Any) -> Figure:
    """Chains against Kesten; a Hill plot; log-moments; networks over eta over b."""
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13, 7.4), layout="constrained")
        _draw_chains(axes[0, 0], config, result)
        plot.hill(result.hill, theory=2.0, ax=axes[0, 1])
        axes[0, 1].set(title="where Kesten's index is 2", xscale="log", ylim=(1, 3.5))
        axes[0, 1].set_xlim(left=10)
        _draw_log_moments(axes[0, 2], result)
        _draw_index(axes[1, 0], result.networks, "steps", "p_value")
        axes[1, 0].set_title("steps past 100 % training accuracy")
        _draw_index(axes[1, 1], result.networks, "weights", "weights_p")
        axes[1, 1].set_title("entries of the mean late weights")
        _draw_gap(axes[1, 2], result.networks)
    return figure


def _draw_chains(ax, config, result):
    """Kesten's index over the learning rate, and Hill's with two standard errors."""
    middle = len(config.num_tails) // 2
    for colour, ((d, b), curve) in zip(COLOURS, result.curves.items(), strict=False):
        ax.plot(*curve.T, color=colour, label=f"Kesten, d={d}, b={b}")
        for tail in result.chains:
            if (tail.dimension, tail.batch_size) == (d, b):
                error = 2 * tail.hill_error[middle]
                place = tail.learning_rate, tail.hill[middle]
                ax.errorbar(*place, error, color=colour, marker="o", ms=4, lw=1)
    ax.axhline(2, color=plot.NULL, ls=":")
    ax.set(xlabel="learning rate", ylabel="tail index")
    ax.set_title(f"chains of regression (Hill, {config.num_tails[middle]} points)")
    ax.legend()


def _draw_log_moments(ax, result):
    """Both estimators against the truth."""
    law = [tail for tail in result.chains if np.isfinite(tail.theory)]
    theory = [tail.theory for tail in law]
    ends = [0, 1.05 * max(theory)]
    ax.plot(ends, ends, color=plot.THEORY, lw=1, label="Kesten")
    hill = np.stack([tail.hill for tail in law])
    ax.plot(
        theory, hill[:, hill.shape[1] // 2], "o", color=plot.TRAIN, ms=5, label="Hill"
    )
    moments = [tail.log_moment for tail in law]
    ax.plot(theory, moments, "s", color=plot.TEST, ms=5, label="log-moments")
    ax.axhline(2, color=plot.NULL, ls=":")
    ax.set(xlabel="tail index of Kesten", ylabel="estimated")
    ax.set_title("two estimators against the truth")
    ax.legend()


def _draw_index(ax, found, index, p_value):
    """An index over eta over b by layer; hollow where the law is rejected."""
    ratio = found.cells[:, 0] / found.cells[:, 1]
    use = found.reached >= 0
    for layer, colour in zip(range(len(found.layers)), COLOURS, strict=False):
        values = np.where(use, getattr(found, index)[..., layer], np.nan)
        fine = use & (getattr(found, p_value)[..., layer] >= LEVEL)
        # Side by side.
        place = (ratio * 1.07 ** (layer - 1))[:, None] + 0 * values
        drawn = {"color": colour, "ls": "", "marker": "o", "ms": 4}
        ax.plot(place[~fine], values[~fine], **drawn, mfc="none")
        ax.plot(place[fine], values[fine], **drawn, label=found.layers[layer])
    ax.axhline(2, color=plot.NULL, ls=":")
    ax.plot([], [], "o", color=plot.NULL, mfc="none", label="stable law rejected")
    ax.set(xscale="log", xlabel="learning rate / batch size")
    ax.set_ylabel("index by log-moments")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.25 * (high - low))
    ax.legend(loc="upper center", ncols=2)


def _draw_gap(ax, found):
    """Gap against the index of the steps."""
    use = found.reached >= 0
    index = np.mean(found.steps, axis=-1)[use]
    gap = 100 * (found.test_error - found.train_error)[use]
    ratio = np.broadcast_to(found.cells[:, :1] / found.cells[:, 1:], use.shape)[use]
    shown = ax.scatter(index, gap, c=np.log10(ratio), cmap="viridis", s=18)
    ax.figure.colorbar(shown, ax=ax, label="log10 of learning rate / batch size")
    ax.set(xlabel="index of steps, mean over layers", ylabel="test less training, %")
    ax.set_title("generalization gap")
