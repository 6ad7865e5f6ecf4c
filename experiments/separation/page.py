"""What the sweep says: claims, a table of every point, and pictures."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import Claim, claims_table
from experiments.separation.networks import LAW, LINEAR, NO_NORM, Point
from jaxtheory import collapse, plot

_COLOURS = {LAW: plot.TRAIN, NO_NORM: plot.TEST, LINEAR: plot.KERNEL}
_MARKS = {"momentum": "o", "sgd": "s", "adam": "^"}


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def _where(point: Point) -> str:
    return f"{point.optimizer} {point.rate:g}"


def claims(config: Any, result: Any) -> list[Claim]:
    """What is published of such networks, and what these do."""
    found = []
    for depth, i in result.best.items():
        best, (middle, low, high) = result.points[i], result.bend[depth]
        name = f"{LAW}, {depth} layers"
        found += [
            _claim(
                f"{name}: log D is linear, r (2210.17020)", best, "pearson_r", -0.98
            ),
            _claim(
                f"{name}: drops vary less than random ones, p",
                best,
                "p_variation",
                0.05,
            ),
            Claim(
                f"{name}: the line is not bent, quadratic coefficient",
                float(middle),
                0.0,
                0.0,
                float(high - low) / 4,
                f"{low:+.3f} to {high:+.3f} over images and seeds",
            ),
        ]
    for name in config.controls:
        found += _control_claims(config, result, name)
    return found


def _claim(text, point, field, high):
    mean, error = _mean(getattr(point, field))
    return Claim(text, mean, -np.inf, high, error, _where(point))


def _control_claims(config, result, name):
    """A control at the rate that is best with BatchNorm and ReLU, and at its own."""
    rivals = [p for p in result.points if p.network == name]
    depth = config.depths[0]
    law = [p for p in result.points if (p.network, p.depth) == (LAW, depth)]
    law = [p for p in law if p.optimizer == "momentum"]
    rate = min(law, key=_r).rate
    same = next(p for p in rivals if p.rate == rate)
    lawful, even = min(rivals, key=_r), min(rivals, key=_p)
    text = f"{name} breaks the law, r"
    return [
        Claim(
            f"{text}, at the rate of {LAW} (2210.17020)",
            *(_mean(same.pearson_r)[0], -0.6, np.inf, _mean(same.pearson_r)[1]),
            _where(same),
        ),
        Claim(
            f"{text}, at the most lawful of its rates",
            *(_mean(lawful.pearson_r)[0], -0.6, np.inf, _mean(lawful.pearson_r)[1]),
            _where(lawful),
        ),
        Claim(
            f"{name}: drops vary no less than random ones at any rate, p",
            *(_mean(even.p_variation)[0], 0.05, np.inf, _mean(even.p_variation)[1]),
            _where(even),
        ),
    ]


def _r(point):
    return np.nan_to_num(point.pearson_r.mean(), nan=np.inf)


def _p(point):
    return np.nan_to_num(point.p_variation.mean(), nan=np.inf)


def report(config: Any, result: Any) -> str:
    """Every point of the sweep, the claims, and how deep a network should be."""
    columns = {
        "r": "pearson_r",
        "r hidden": "hidden_r",
        "factor": "ratio",
        "drop CV": "drop_variation",
        "bend": "quadratic",
        "p(r)": "p_correlation",
        "p(CV)": "p_variation",
        "test acc.": "test_accuracy",
    }
    head = f"{'network':<11}{'layers':<8}{'optimizer':<15}"
    lines = [head + "".join(f"{name:<15}" for name in columns)]
    for i, point in enumerate(result.points):
        mark = "*" if i in result.best.values() else ""
        cells = [_said(getattr(point, field)) for field in columns.values()]
        where = f"{point.network:<11}{point.depth:<8}{_where(point) + mark:<15}"
        lines.append(where + "".join(f"{cell:<15}" for cell in cells))
    lines += [
        "* lowest r of its depth, so selected by it; p: share of random laws as good",
        *_depths(config, result),
        "",
        claims_table(claims(config, result)),
        "",
        f"Means over {config.num_seeds} seeds ± standard errors.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _said(values):
    if not np.all(np.isfinite(values)):
        return f"{np.sum(~np.isfinite(values))} undefined"
    mean, error = _mean(values)
    return (
        f"{mean:.3f} ± {error:.3f}" if abs(mean) < 10 else f"{mean:.0f} ± {error:.0f}"
    )


def _depths(config, result):
    """How deep a network the line of one depth asks for, to do as well as another."""
    lines = []
    for depth, other in zip(config.depths, config.depths[1:], strict=False):
        here, there = (result.points[result.best[d]] for d in (depth, other))
        target = float(np.exp(np.log(there.separation[:, -1]).mean()))
        typical = np.exp(np.log(here.separation).mean(0))
        asked = collapse.suggest_depth(collapse.fit_separation_law(typical), target)
        lines.append(
            f"D = {target:.3g}, reached by {other} layers, would take {asked:g} on the "
            f"line of {depth}"
        )
    return lines


def draw(config: Any, result: Any) -> Any:
    """Laws at the best points and of the controls; correlations and drops by rate."""
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
        _draw_laws(axes[0], config, result)
        fields = (("pearson_r", "Pearson r"), ("drop_variation", "CV of the log drops"))
        for ax, (field, label) in zip(axes[1:], fields, strict=True):
            _draw_sweep(ax, config, result, field)
            ax.set(xscale="log", xlabel="learning rate", ylabel=label)
        axes[1].axhline(-0.98, color=plot.THEORY, ls="--", lw=1)
        axes[2].axhline(3**-0.5, color=plot.THEORY, ls="--", lw=1)
        axes[1].set(ylim=(-1.05, 1.05), title="dashed: -.98")
        axes[2].set(yscale="log", title="dashed: uniform drops")
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    return figure


def _draw_laws(ax, config, result):
    chosen = [(result.points[i], plot.TRAIN) for i in result.best.values()]
    for name in config.controls:
        rivals = [p for p in result.points if p.network == name]
        chosen.append((min(rivals, key=_r), _COLOURS[name]))
    for (point, colour), ls in zip(chosen, ("-", ":", "-", "-"), strict=False):
        logs = np.log(point.separation)
        layers = np.arange(logs.shape[1])
        ax.plot(layers, logs.T, ".", color=colour, alpha=0.4)
        fit = np.polyfit(layers, logs.mean(0), 1)
        label = f"{point.network}, {point.depth} layers, {_where(point)}"
        ax.plot(layers, np.polyval(fit, layers), color=colour, ls=ls, label=label)
    ax.set(xlabel="layer (0: pixels)", ylabel="log D")
    ax.set_ylim(top=ax.get_ylim()[1] + 3)
    ax.legend()


def _draw_sweep(ax, config, result, field):
    groups = {(p.network, p.optimizer, p.depth) for p in result.points}
    for network, optimizer, depth in sorted(groups):
        found = [p for p in result.points if p[:3] == (network, optimizer, depth)]
        means = [_mean(getattr(p, field)) for p in found]
        first = depth == config.depths[0]
        ax.errorbar(
            [p.rate for p in found],
            *np.array(means).T,
            fmt=_MARKS[optimizer],
            ls="-" if first else ":",
            mfc=_COLOURS[network] if first else "white",
            color=_COLOURS[network],
            label=f"{network}, {depth}, {optimizer}",
        )
