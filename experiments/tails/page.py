"""Tables and claims of the heavy tails."""

from typing import Any

import numpy as np
from scipy.stats import binom

from experiments.claims import Claim, claims_table
from experiments.population.correlation import ceiling, equal
from experiments.tails.figure import draw as draw
from experiments.tails.ranking import LEVEL, OBSERVED, accepted, fitted, gap, ranks


def claims(config: Any, result: Any) -> list[Claim]:
    """What the theory and the papers say, and what was found."""
    return [*_chain_claims(config, result), *_network_claims(config, result.networks)]


def _chain_claims(config, result):
    law = [tail for tail in result.chains if np.isfinite(tail.theory)]
    theory = np.array([tail.theory for tail in law])
    hill, error = (
        np.stack([getattr(tail, name) for tail in law])
        for name in ("hill", "hill_error")
    )
    # An interval that is right 95 % of the time misses so many once in a hundred.
    least = _binomial_quantile(len(law), 0.95, 0.01) / len(law)
    rows = [
        Claim(
            f"Kesten: share of 95 % intervals (Hill, {k} tail points) that hold alpha",
            float(np.mean(np.abs(hill[:, i] - theory) <= 1.96 * error[:, i])),
            least,
            1.0,
        )
        for i, k in enumerate(config.num_tails)
    ]
    heavy = theory <= 2 + 1e-6
    ratio = hill[heavy, -1] / theory[heavy]
    spread = error[heavy, -1] / theory[heavy]
    rows.append(
        Claim(
            f"alpha up to 2: mean of Hill ({config.num_tails[-1]} points) over Kesten",
            float(np.mean(ratio)),
            0.97,
            1.03,
            float(np.sqrt(np.sum(spread**2)) / len(ratio)),
        )
    )
    # A mean logarithm of size that still grows by a hundredth a step.
    agree = [(tail.growth > 0.01) == (tail.lyapunov >= 0) for tail in result.chains]
    text = "gate: share of regressions whose chains grow just where theory says"
    rows.append(Claim(text, float(np.mean(agree)), 1.0, 1.0))
    at_two = [tail for tail in law if abs(tail.theory - 2) < 1e-3]
    read = [tail.log_moment for tail in at_two]
    spread = np.sqrt(np.sum(np.square([tail.log_moment_error for tail in at_two])))
    rows.append(
        Claim(
            "a tail of index 2 is 2 to log-moments (what their use presumes)",
            float(np.mean(read)),
            1.9,
            2.1,
            float(spread / len(read)),
        )
    )
    return [*rows, *_variance_claims(result.variances)]


def _variance_claims(variances):
    for one in variances:
        name = f"variance at eta {one.learning_rate:g}"
        yield Claim(
            f"{name}: solver over formula less 1",
            abs(one.solved / one.formula - 1),
            0.0,
            1e-9,
        )
        yield Claim(
            f"{name}: chains over formula",
            one.measured / one.formula,
            0.97,
            1.03,
            one.error / one.formula,
        )


def _network_claims(config, found):
    ranked = ranks(config, found)
    text = "2006.04740: heavier with eta/b, tau of"
    rows = [
        Claim(f"{text} {label}", ranked[name].ratio, -np.inf, 0.0, ranked[name].error)
        for name, label in OBSERVED.items()
        if name != "spectrum"
    ]
    for name, what in (("p_value", "steps"), ("weights_p", "mean weights")):
        share, error = accepted(found, name)
        text = f"stable law not rejected: share of layers, {what}"
        rows.append(Claim(text, share, 0.9, 1.0, error))
    spectrum = ranked["spectrum"]
    text = "1810.01075: spectra heavier with eta/b, tau of exponent"
    return [*rows, Claim(text, spectrum.ratio, -np.inf, 0.0, spectrum.error)]


def _binomial_quantile(number, share, level):
    """The smallest count that has a probability of at least `level` at or below it."""
    return float(binom.ppf(level, number, share))


def report(config: Any, result: Any) -> str:
    """All tables, and the claims."""
    return "\n".join(
        [
            *_chain_table(config, result.chains),
            "",
            *_network_table(result.networks),
            "",
            *_rank_table(config, result.networks),
            "",
            claims_table(claims(config, result)),
        ]
    )


def _chain_table(config, chains):
    heads = [f"Hill, {k}" for k in config.num_tails]
    yield _row("d", "b", "eta", "Kesten", *heads, "log-moments", "rho", "growth")
    for tail in chains:
        hill = [_give(*pair) for pair in zip(tail.hill, tail.hill_error, strict=True)]
        yield _row(
            tail.dimension,
            tail.batch_size,
            f"{tail.learning_rate:.4f}",
            f"{tail.theory:.3f}",
            *hill,
            _give(tail.log_moment, tail.log_moment_error),
            f"{tail.lyapunov:.4f}",
            f"{tail.growth:.4f}",
        )


def _network_table(found):
    yield f"digits; medians over seeds of layers {', '.join(found.layers)}"
    yield _row(
        "eta", "b", "eta/b", "fitted", "steps", "Hill of steps", "rejected",
        "weights", "at start", "rejected", "spectrum", "gap",
    )  # fmt: skip
    ratio = found.cells[:, 0] / found.cells[:, 1]
    for cell in np.argsort(ratio, kind="stable"):
        use = fitted(found)[cell]
        rate, batch = found.cells[cell]
        count = f"{use.sum()}/{len(use)}"
        head = f"{rate:g}", f"{batch:g}", f"{ratio[cell]:.4f}", count
        rest = _of_cell(found, cell, use) if use.any() else ()
        yield _row(*head, *rest)
    use = fitted(found)
    refused = found.p_value[use] < LEVEL
    nearer = np.mean(found.lighter[use][refused]) if refused.any() else np.nan
    yield (
        f"steps: rejected in {np.mean(refused):.2f} of layers, of these {nearer:.2f} "
        "because sums are nearer to a Gaussian; mean cosine of successive steps "
        f"{np.mean(found.correlation[use]):+.3f}"
    )


def _of_cell(found, cell, use):
    """The row of one cell, of its fitted networks."""
    at = lambda name: getattr(found, name)[cell][use]
    median = lambda name: " ".join(f"{a:.2f}" for a in np.median(at(name), axis=0))
    refused = lambda name: f"{np.mean(at(name) < LEVEL):.2f}"
    return (
        median("steps"),
        median("steps_hill"),
        refused("p_value"),
        median("weights"),
        median("initial"),
        refused("weights_p"),
        median("spectrum"),
        f"{np.nanmean(gap(found)[cell]):.3f}",
    )


def _rank_table(config, found):
    yield "Kendall tau (mean over layers), interval over resamples of cells"
    yield _row(
        "of", "eta/b", "95 %", "by layer", "eta alone", "b alone", "gap", width=28
    )
    for name, rank in ranks(config, found).items():
        yield _row(
            OBSERVED[name],
            f"{rank.ratio:+.2f}",
            f"{rank.low:+.2f} to {rank.high:+.2f}",
            " ".join(f"{value:+.2f}" for value in rank.layers),
            f"{rank.rate:+.2f}",
            f"{rank.batch:+.2f}",
            f"{rank.gap:+.2f} +- {rank.gap_error:.2f}",
            width=28,
        )
    noise = ceiling(gap(found), equal(found.cells, 0))
    yield f"noise ceiling: tau between the gaps of two seeds {noise.between_seeds:+.2f}"


def _row(*cells, width=16):
    return "".join(f"{cell!s:<{width}}" for cell in cells).rstrip()


def _give(value, error):
    return "-" if np.isnan(value) else f"{value:.3f} +- {error:.3f}"
