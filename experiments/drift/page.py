"""Table, claims and figure of label noise."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.claims import Claim, claims_table, mean_and_error
from experiments.drift.digits import BATCHES, DESCENT, NOISE
from jaxtheory import plot

_COLOURS = {NOISE: plot.TRAIN, BATCHES: plot.KERNEL, DESCENT: plot.TEST}


def slope(drift: Any) -> np.ndarray:
    """Measured on predicted decrease, by least squares through zero, for each seed."""
    over = np.sum(drift.predicted**2, axis=1)
    return np.sum(drift.decrease * drift.predicted, axis=1) / over


def spread(drifts: list[Any]) -> np.ndarray:
    """How far curves of tr H are apart at equal times, over their fall, by seed."""
    curves = np.stack([drift.trace for drift in drifts])
    apart = np.max(np.max(curves, 0) - np.min(curves, 0), axis=1)
    return apart / np.mean(curves[:, :, 0] - curves[:, :, -1], axis=0)


def claims(config: Any, result: Any) -> list[Claim]:
    """What theory says, and what the runs do."""
    return [
        *_exact_claims(result),
        *_drift_claims(result.drifts),
        *_digits_claims(config, result.arms),
    ]


def _exact_claims(result):
    full, leading = result.predicted
    mean, error = mean_and_error(result.gaps)
    tenth = abs(leading - full) / 10  # to leading order in sigma; tr H / 4 is ten away
    text = f"two parameters: t1^2 - t2^2 is {full:.4f}, where tr H / 4 has"
    return [Claim(f"{text} {leading:.4f}", mean, full - tenth, full + tenth, error)]


def _drift_claims(drifts):
    rows = [
        Claim(
            f"regression, eta {d.learning_rate:g}, sigma {d.scale:g}: measured over "
            "predicted fall of R (2106.06530)",
            *_order(slope(d), 0.95, 1.05),
        )
        for d in drifts
    ]
    rates = [drift.learning_rate for drift in drifts]
    most = max(range(len(drifts)), key=rates.__getitem__)
    # The full regulariser moves each eigenvalue by 1 / (1 - eta h / 2), not by 1.
    edge = float(np.mean(drifts[most].sharpness))
    text = "at equal eta^2 sigma^2 t the curves of tr H are apart by, over their fall"
    rows.append(Claim(text, *_order(spread(drifts), -np.inf, edge / (1 - edge))))
    for rate in sorted(set(rates)):
        same = [drift for drift in drifts if drift.learning_rate == rate]
        if len(same) > 1:
            fields = _order(spread(same), -np.inf, 0.05)
            rows.append(
                Claim(f"those of eta {rate:g} alone, sigma^2 being exact", *fields)
            )
    return rows


def _digits_claims(config, arms):
    noise, batches, descent = (arms[name] for name in (NOISE, BATCHES, DESCENT))
    ratio = lambda a: a[-1] / a[0]
    equal = f"at a loss of {config.final_loss:g}: "
    noisy = float(np.mean(noise.noisy_loss[-1] / noise.loss[0]))
    apart = 100 * (noise.end.error - descent.end.error)
    return [
        Claim(
            "digits: share of networks compared at equal loss", *_reached(arms), 1, 1
        ),
        Claim(
            "with label noise tr H falls, end over start",
            *_order(ratio(noise.trace), -np.inf, 1),
        ),
        Claim(
            "and the loss of the mean network stays, end over start",
            *_order(ratio(noise.loss), -np.inf, 1),
            f"of the network itself {noisy:.1f}",
        ),
        Claim(
            "the same batches without noise: tr H less that with noise, over the start",
            *_order((batches.trace[-1] - noise.trace[-1]) / noise.trace[0], 0, np.inf),
        ),
        Claim(
            f"{equal}flatter than descent, tr H over its (1904.09080)",
            *_order(noise.end.trace / descent.end.trace, -np.inf, 1),
        ),
        Claim(
            f"{equal}test error less that of descent, points",
            *_order(apart, -np.inf, 0),
        ),
    ]


def _reached(arms):
    return (float(np.mean(arms[NOISE].end.reached & arms[DESCENT].end.reached)),)


def _order(values, low, high):
    """Fields of a claim from values over seeds and a range."""
    mean, error = mean_and_error(values)
    return mean, low, high, error


def report(config: Any, result: Any) -> str:
    """Slopes of the regression, what became of digits, and the claims."""
    head = (
        "eta",
        "sigma",
        "eta h/2",
        "steps",
        "tr H start",
        "end",
        "fall of R / predicted",
    )
    lines = ["regression", " ".join(f"{name:>11}" for name in head) + "  / by tr H / 4"]
    for d in result.drifts:
        steps = d.time[-1] / (d.learning_rate * d.scale) ** 2
        leading = mean_and_error(d.decrease[:, -1] / d.leading[:, -1])[0]
        value, error = mean_and_error(slope(d))
        lines.append(
            f"{d.learning_rate:>11g} {d.scale:>11g} {d.sharpness.mean():>11.3f} "
            f"{steps:>11.0f} {d.trace[:, 0].mean():>11.3f} "
            f"{d.trace[:, -1].mean():>11.3f} {f'{value:.4f} ± {error:.4f}':>21}"
            f"{leading:>15.3f}"
        )
    lines += ["", f"digits, {config.num_steps} steps after interpolation"]
    for name, arm in result.arms.items():
        line = (
            f"{name:<18} tr H {arm.trace[0].mean():.0f} to {arm.trace[-1].mean():.0f}, "
            f"loss of the mean network {arm.loss[0].mean():.4f} to "
            f"{arm.loss[-1].mean():.4f} (at most {arm.loss.mean(1).max():.4f})"
        )
        if arm.end is not None:
            trace, error = (
                mean_and_error(v) for v in (arm.end.trace, 100 * arm.end.error)
            )
            line += (
                f"; at a loss of {arm.end.loss.mean():.4f}: tr H {trace[0]:.0f} ± "
                f"{trace[1]:.0f}, test error {error[0]:.2f} ± {error[1]:.2f} %"
            )
        lines.append(line)
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def draw(config: Any, result: Any) -> Figure:
    """Predicted against measured fall, curves in rescaled time, and digits."""
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(16, 3.8), layout="constrained")
        _draw_drift(axes[0], axes[1], result.drifts)
        _draw_digits(axes[2], axes[3], result.arms)
    return figure


def _draw_drift(left, right, drifts):
    """Falls against their predictions, and tr H over its start in rescaled time."""
    ends = (np.inf, 0.0)
    for i, drift in enumerate(drifts):
        label = rf"$\eta$ = {drift.learning_rate:g}, $\sigma$ = {drift.scale:g}"
        predicted, decrease = drift.predicted[:, 1:].ravel(), drift.decrease[:, 1:]
        left.plot(
            predicted,
            decrease.ravel(),
            "o",
            ms=3,
            alpha=0.6,
            color=f"C{i}",
            label=label,
        )
        curve = np.mean(drift.trace / drift.trace[:, :1], axis=0)
        style = ("-", "--", ":", "-.")[i % 4]
        right.plot(drift.time, curve, style, color=f"C{i}", label=label)
        ends = min(ends[0], np.min(predicted)), max(ends[1], np.max(predicted))
    left.plot(ends, ends, color="black", lw=1, zorder=0)
    left.set(xlabel="predicted fall of the regulariser", ylabel="measured fall")
    left.set(xscale="log", yscale="log")
    right.set(xlabel=r"$\eta^2 \sigma^2$ times steps", ylabel="tr H over its start")
    left.legend(fontsize=7)
    right.legend(fontsize=7, loc="lower left")
    left.set_title("regression: drift")
    right.set_title("regression: rescaled time")


def _draw_digits(left, right, arms):
    """Traces and losses of mean networks, every network a line."""
    for name, arm in arms.items():
        style = "--" if name == BATCHES else "-"
        options = {"color": _COLOURS[name], "lw": 0.9, "ls": style, "alpha": 0.7}
        for ax, rows in ((left, arm.trace), (right, arm.loss)):
            lines = ax.plot(arm.steps - arm.steps[0], rows, **options)
            lines[0].set_label(name)
    left.set(ylabel="tr H of the mean network")
    right.set(ylabel="training loss of the mean network", yscale="log")
    for ax in (left, right):
        ax.set(xlabel="steps after interpolation")
        ax.legend(fontsize=7)
    left.set_title("digits: flatness")
    right.set_title("digits: loss")
