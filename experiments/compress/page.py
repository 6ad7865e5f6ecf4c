"""The table, the figure and the claims of the compression experiment."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.claims import Claim, claims_table, mean_and_error
from jaxtheory import plot

SMALL = "pruned, trained on"
KINDS = {"seed": "theta0 drawn in each step", "model_state": "theta0 kept"}


def smallest_sizes(config: Any, noise: Any) -> np.ndarray:
    """Numbers in the smallest network that is accurate enough; NaN where none is."""
    sizes = np.where(noise.pruned >= config.accuracy, noise.num_params, np.inf)
    found = sizes.min(axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def claims(config: Any, result: Any) -> list[Claim]:
    """The targets and the published claims, and what was measured."""
    arms, found = result.arms, []
    plain, small = arms["plain"], arms[SMALL]
    chosen, large = arms["subspace, by bound"], arms["subspace, large"]
    add = lambda text, values, low, high, **more: found.append(
        Claim(text, *_split(values, low, high), **more)
    )
    for name, arm in ((SMALL, small), ("subspace, large", large)):
        lost = 100 * (plain.accuracy - arm.accuracy)
        add(f"{name}: points of test accuracy lost", lost, -np.inf, 1.0)
        add(f"{name}: times smaller on disk", plain.size / arm.size, 10.0, np.inf)
    add(
        f"{SMALL}: times faster forward, 256 examples",
        plain.seconds / small.seconds,
        2.0,
        np.inf,
    )
    for kind, how in KINDS.items():
        if result.memory:
            ratio = result.memory["plain"] / result.memory[kind]
            text = f"subspace training, {how}: times less peak memory"
            add(text, ratio, 2.0, np.inf)
    add("certificate from the length of a file", chosen.bound, -np.inf, 0.9)
    below = chosen.bound < 1 - chosen.accuracy
    text = f"share of {len(below)} of these below the error on test data"
    found.append(Claim(text, float(np.mean(below)), 0.0, config.delta))
    return found + noise_claims(config, result.noise)


def _split(values, low, high):
    mean, error = mean_and_error(values)
    return mean, low, high, error


def noise_claims(config: Any, noise: Any) -> list[Claim]:
    """Heavier tails against those of normal noise, the one of tail index 2."""
    sizes = {name: smallest_sizes(config, one) for name, one in noise.items()}
    found = []
    for name, size in sizes.items():
        if name in ("none", "2") or "2" not in sizes:
            continue
        ratio = sizes["2"] / size
        text = (
            f"noise of tail index {name}: times fewer numbers at "
            f"{100 * config.accuracy:g} % than of 2"
        )
        good = np.isfinite(ratio)
        note = "" if good.all() else f"reached on {good.sum()} of {good.size} seeds"
        mean, error = mean_and_error(ratio) if good.all() else (np.nan, 0.0)
        found.append(Claim(text, mean, 1.0, np.inf, error, note))
    return found


def report(config: Any, result: Any) -> str:
    """Size, accuracy, speed and bound of each network, memory, noise, claims."""
    lines = [
        f"{'network':<22}{'bytes':<18}{'test accuracy, %':<18}{'forward, us':<16}"
        f"{'bound, %':<16}nodes or coordinates"
    ]
    for name, arm in result.arms.items():
        what = [f"{d} in {k} levels" for d, k in arm.coded if d]
        if not what:
            what = ["-".join(map(str, widths)) for widths in arm.widths]
        lines.append(
            f"{name:<22}{_shown(arm.size, 0):<18}{_shown(100 * arm.accuracy):<18}"
            f"{_shown(1e6 * arm.seconds, 1):<16}{_shown(100 * arm.bound):<16}"
            + ", ".join(dict.fromkeys(what))
        )
    num_seeds = len(result.arms["plain"].size)
    lines.append(
        f"(± one standard error over {num_seeds} splits; bytes of a real file, of the "
        "plain network as safetensors;\nthe bound fails with a probability of "
        f"{config.delta:g})"
    )
    if result.memory:
        shown = ", ".join(
            f"{name} {_shown(mib, 0)}" for name, mib in result.memory.items()
        )
        lines += [
            "",
            "peak resident memory of `dynamics.train` in a process of its own, less "
            f"that of layers of 8 nodes,\nMiB, {config.memory_layers} layers of "
            f"{config.memory_width} nodes: {shown}",
        ]
    lines += [
        "",
        f"{'noise, tail index':<22}{'test accuracy, %':<18}"
        f"numbers left at {100 * config.accuracy:g} %, nodes left out, not trained on",
    ]
    for name, one in result.noise.items():
        sizes = smallest_sizes(config, one)
        lines.append(
            f"{name:<22}{_shown(100 * one.accuracy):<18}"
            + " ".join("-" if np.isnan(s) else f"{s:,.0f}" for s in sizes)
        )
    return "\n".join([*lines, "", claims_table(claims(config, result))])


def _shown(values, digits=2):
    if not np.all(np.isfinite(values)):
        return "-"
    mean, error = mean_and_error(values)
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}"


def draw(config: Any, result: Any) -> Figure:
    """Error by size: of files, and of networks whose nodes were left out."""
    with plt.rc_context(plot.STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 4), layout="constrained"
        )
        for index, (name, arm) in enumerate(result.arms.items()):
            colour = f"C{index}"
            left.plot(arm.size, 100 * (1 - arm.accuracy), "o", color=colour, label=name)
            left.plot(arm.size, 100 * arm.bound, "_", color=colour, ms=12)
        left.set(xscale="log", yscale="log", xlabel="bytes on disk", ylabel="error, %")
        left.set_title("test error (points) and bound by file length (bars)")
        left.legend()
        for index, (name, one) in enumerate(result.noise.items()):
            label = "no noise" if name == "none" else f"noise, tail index {name}"
            kept = np.mean(one.num_params, axis=0)
            errors = 100 * np.mean(one.pruned, axis=0)
            right.plot(kept, errors, ".-", color=f"C{index}", label=label)
        right.axhline(100 * config.accuracy, color="gray", ls=":", lw=1)
        right.set(xscale="log", xlabel="numbers left", ylabel="test accuracy, %")
        right.set_title("nodes left out, not trained on")
        right.legend()
    return figure
