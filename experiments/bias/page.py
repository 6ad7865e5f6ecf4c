"""Table, claims and figure of implicit biases."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.bias.margin import NORMS
from experiments.claims import Claim, claims_table, mean_and_error
from jaxtheory import plot


def _order(values, low, high):
    """Fields of a claim from values over seeds and a range."""
    mean, error = mean_and_error(values)
    return mean, low, high, error


def late(edge: Any, values: np.ndarray) -> np.ndarray:
    """Mean of each seed's values at the edge; NaN where it has not come there."""
    return np.array(
        [
            np.mean(v[at]) if np.any(at) else np.nan
            for v, at in zip(values, edge.late, strict=True)
        ]
    )


def claims(config: Any, result: Any) -> list[Claim]:
    """What theory says, and what the runs do."""
    return [
        *_diagonal_claims(config, result.diagonal),
        *_flow_claims(result.errors, result.edge),
        *_margin_claims(result.margins),
    ]


def _diagonal_claims(config, found):
    shallow = config.depths.index(2)
    most, least = np.argmax(config.scales), np.argmin(config.scales)
    two = "2002.09277, depth 2:"
    rows = [
        Claim(
            f"depth {depth}: distance from the least penalty, largest of all scales",
            float(np.max(found.apart[i])), 0.0, 0.001,
        )
        for i, depth in enumerate(config.depths)
    ]  # fmt: skip
    rows += [
        Claim(
            f"{two} l2 norm over the least, less 1, scale {config.scales[most]:g}",
            *_order(
                found.l2[shallow, most], -1e-6, np.max(found.l2_limit[shallow, most])
            ),
        ),
        Claim(
            f"{two} l1 norm over the least, less 1, scale {config.scales[least]:g}",
            *_order(
                found.l1[shallow, least], -1e-6, np.max(found.l1_limit[shallow, least])
            ),
        ),
    ]
    for i, depth in enumerate(config.depths):
        fall = found.error[i, most] - found.error[i, least]
        text = f"sparse teacher, depth {depth}: test error, large start less small"
        rows.append(Claim(text, *_order(fall, 0, np.inf)))
    if len(config.depths) > 1:
        middle = len(config.scales) // 2
        apart = found.l1[shallow, middle] - found.l1[-1, middle]
        text = (
            f"deeper is nearer to l1, scale {config.scales[middle]:g}: excess, 2 less"
        )
        rows.append(Claim(f"{text} {config.depths[-1]}", *_order(apart, 0, np.inf)))
    return rows


def _flow_claims(errors, edge):
    rows = [
        Claim(
            f"error of {name}: power of eta (2009.11162)",
            *_order(errors.slope[name], power - 0.15, power + 0.15),
        )
        for name, power in (("gradient flow", 1), ("modified flow", 2))
    ]
    at = lambda values: late(edge, values)
    text = "at the edge (2410.24206):"
    distance, loss = at(edge.to_central) / at(edge.to_flow), at(edge.central_loss)
    return [
        *rows,
        Claim(
            f"{text} sharpness of the mean network over 2 / eta",
            *_order(at(edge.sharpness), 0.97, 1.05),
        ),
        Claim(
            f"{text} mean loss predicted by the central flow, over that of descent",
            *_order(loss / at(edge.loss), 0.9, 1.1),
        ),
        Claim(
            f"{text} distance to the central flow, over that to gradient flow",
            *_order(distance, 0, 1),
        ),
    ]


def _margin_claims(margins):
    rows = []
    for i, (name, norm) in enumerate(NORMS.items()):
        own = margins.share[i, i, :, -1]
        other = margins.share[1 - i, i, :, -1]
        low = 1 - float(np.mean(margins.gap[i]))
        rows += [
            Claim(
                f"{name}: {norm} margin over the largest (1802.08246)",
                *_order(own, low, 1 + 1e-9),
            ),
            Claim(
                "and over that of the other algorithm", *_order(own / other, 1, np.inf)
            ),
        ]
    rows.append(
        Claim(
            "share of largest margins proved by their duals",
            float(margins.certified),
            1,
            1,
        )
    )
    return rows


def report(config: Any, result: Any) -> str:
    """Diagonal networks by scale, flows, margins, and the claims."""
    lines, found = [], result.diagonal
    for i, depth in enumerate(config.depths):
        lines.append(
            f"depth {depth}: scale, l2 and l1 norm over the least less 1, test error"
        )
        for j, scale in enumerate(config.scales):
            l2, l1 = found.l2[i, j].mean(), found.l1[i, j].mean()
            error, spread = mean_and_error(found.error[i, j])
            lines.append(
                f"{scale:>9g} {l2:>9.4f} {l1:>9.4f} {error:>12.3g} ± {spread:.1g}"
            )
    pinv, pursuit = (
        mean_and_error(found.pinv_error),
        mean_and_error(found.pursuit_error),
    )
    lines += [
        f"least l2 norm: test error {pinv[0]:.3f} ± {pinv[1]:.2g}; least l1 norm: "
        f"{pursuit[0]:.2g}",
        "",
        f"at the edge of stability, eta = {config.edge_rate:g}, mean over seeds",
    ]
    edge = result.edge
    for name, loss, sharpness in (
        ("gradient descent", edge.loss, edge.sharpness),
        ("central flow", edge.central_loss, edge.central_sharpness),
        ("gradient flow", edge.flow_loss, edge.flow_sharpness),
    ):
        value = late(edge, loss).mean()
        top = late(edge, sharpness).mean()
        lines.append(f"{name:<18} loss {value:.4f}, sharpness {top:.3f} of 2 / eta")
    lines.append(
        f"distance of window means: to the central flow "
        f"{late(edge, edge.to_central).mean():.3f}, to gradient flow "
        f"{late(edge, edge.to_flow).mean():.3f}; central flow sure of itself in "
        f"{np.sum(edge.converged)} of {len(edge.converged)}"
    )
    cosine = result.margins.cosine
    lines += [
        "",
        f"cosine of descent with the l2 direction: at least {cosine.min():.5f}",
        "",
    ]
    return "\n".join([*lines, claims_table(claims(config, result))])


def draw(config: Any, result: Any) -> Figure:
    """Norms and test errors by scale, the edge of stability, orders, and margins."""
    with plt.rc_context(plot.STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
        _draw_diagonal(axes[0, 0], axes[0, 1], config, result.diagonal)
        _draw_errors(axes[0, 2], result.errors)
        _draw_edge(axes[1, 0], axes[1, 1], config, result.edge)
        _draw_margins(axes[1, 2], result.margins)
    return figure


def _draw_diagonal(left, right, config, found):
    """Norms over their least, and test errors, by scale of the start."""
    for i, depth in enumerate(config.depths):
        style = ("-", "--", ":")[i % 3]
        for values, label, colour in (
            (found.l2, "l2", plot.TRAIN),
            (found.l1, "l1", plot.TEST),
        ):
            label = f"{label} norm, depth {depth}"
            mean = values[i].mean(axis=1) + 1
            left.plot(config.scales, mean, style, color=colour, label=label)
        right.plot(
            config.scales, found.error[i].mean(axis=1), style, color=plot.TEST,
            marker="o", ms=3, label=f"depth {depth}",
        )  # fmt: skip
    right.axhline(
        found.pinv_error.mean(), color=plot.TRAIN, lw=1, label="least l2 norm"
    )
    left.set(xscale="log", xlabel="scale of the start", ylabel="norm over the least")
    right.set(xscale="log", yscale="log", xlabel="scale of the start")
    right.set(ylabel="test error, sparse teacher")
    for ax in (left, right):
        ax.legend(fontsize=7)
    left.set_title("diagonal networks: norms")
    right.set_title("diagonal networks: test error")


def _draw_errors(ax, errors):
    """Distances from the flows by learning rate, with the lines of their orders."""
    for name, colour, power in (
        ("gradient flow", plot.TEST, 1),
        ("modified flow", plot.TRAIN, 2),
    ):
        distance = errors.distance[name]
        ax.plot(errors.rates, distance.T, "o", ms=3, color=colour)
        centre = np.exp(np.mean(np.log(distance[:, -1])))
        line = centre * (errors.rates / errors.rates[-1]) ** power
        ax.plot(errors.rates, line, color=colour, label=f"{name}, order {power}")
    ax.set(xscale="log", yscale="log", xlabel=r"learning rate $\eta$")
    ax.set_xticks(errors.rates, [f"{rate:g}" for rate in errors.rates])
    ax.set_xticks([], minor=True)
    ax.set(ylabel="distance of gradient descent")
    ax.legend(fontsize=7)
    ax.set_title("before the edge")


def _draw_edge(left, right, config, edge):
    """Sharpness and distances of the first seed."""
    top = max(1.5, 1.2 * float(edge.sharpness[0].max()))
    for values, label, colour in (
        (edge.sharpness[0], "gradient descent, mean network", plot.TEST),
        (edge.central_sharpness[0], "central flow", plot.TRAIN),
        (edge.flow_sharpness[0], "gradient flow", plot.KERNEL),
    ):
        left.plot(edge.steps, values, color=colour, label=label)
    left.axhline(1, color="black", lw=0.8, ls=":")
    left.set(xlabel="step", ylabel=r"sharpness over 2/$\eta$", ylim=(0, top))
    for values, label, colour in (
        (edge.loss[0], "gradient descent, mean", plot.TEST),
        (edge.central_loss[0], "central flow, predicted mean", plot.TRAIN),
        (edge.flow_loss[0], "gradient flow", plot.KERNEL),
    ):
        right.plot(edge.steps, values, color=colour, label=label)
    right.set(xlabel="step", ylabel="training loss", yscale="log")
    for ax in (left, right):
        ax.legend(fontsize=7)
    left.set_title("edge of stability: sharpness")
    right.set_title("edge of stability: loss")


def _draw_margins(ax, margins):
    """What each margin lacks, by step."""
    for i, name in enumerate(NORMS):
        for j, norm in enumerate(NORMS.values()):
            lacks = 1 - margins.share[i, j].mean(axis=0)
            colour = (plot.TRAIN, plot.TEST)[i]
            label = f"{name}, {norm} margin"
            ax.plot(
                margins.steps, lacks, "-" if i == j else "--", color=colour, label=label
            )
    ax.set(
        xscale="log", yscale="log", xlabel="step", ylabel="share of the margin missing"
    )
    ax.legend(fontsize=7)
    ax.set_title("margins")
