"""What is published of collapse and transfer, as far as a pool can tell."""

import math
from typing import Any

import numpy as np

from experiments.claims import Claim
from experiments.transfer import correlation

_LI = "Li et al., 2212.12206"
_GALANTI = "Galanti et al., 2112.15121"


def claims(config: Any, result: Any) -> list[Claim]:
    """What is published, as far as this pool can tell."""
    found = []
    for where, rows in (("new classes", result.new_classes), ("shifts", result.shifts)):
        target = rows["target NC1 (negative)"]
        found += [
            _positive(
                f"more collapse (NC1) on target data, better probe ({_LI}): {where}",
                target.by["probe"],
            ),
            _positive(f"the same given source accuracy: {where}", target.partial),
            _positive(f"the same within architectures: {where}", target.within),
        ]
    source = result.new_classes["source train NC1 (negative)"]
    negative = source.by["probe"]
    found += [
        Claim(
            f"less NC1 collapse on source data, higher accuracy of a probe on new "
            f"classes ({_LI}, v1)",
            negative.value,
            -math.inf,
            0.0,
            error=negative.error,
        ),
        _positive(
            f"more CDNV collapse on source data, higher few-shot accuracy on new "
            f"classes ({_GALANTI})",
            result.new_classes["source test CDNV (negative)"].by["few-shot"],
        ),
        _carries_over(config, result),
    ]
    return [*found, *_skip(config, result), *_choice(config, result), *_bound(result)]


def _positive(text, found):
    return Claim(text, found.value, 0.0, math.inf, error=found.error)


def _indices(config, result):
    num_stops = len(config.stops)
    draw = np.random.default_rng(config.seed)
    return correlation.resamples(
        len(result.networks) // num_stops, num_stops, config.num_resamples, draw
    )


def _carries_over(config, result):
    indices = _indices(config, result)
    pair = (
        result.scores[f"{which} CDNV (negative)"][0]
        for which in ("source test", "target")
    )
    found = correlation.spearman(*(correlation.ranks(row, indices) for row in pair))
    text = f"collapse (CDNV) on source classes goes with that on new ones ({_GALANTI})"
    return _positive(text, found)


def _skip(config, result):
    """Skip-connection fine-tuning of the layer that needs the fewest parameters."""
    found = []
    for name in dict.fromkeys(result.networks):
        some = result.networks == name
        counts = result.counts[int(np.argmax(some))]
        trained = [count.trainable for count in counts]
        layer = int(np.argmin(trained[1:]))
        share = trained[1 + layer] / trained[0]
        loss = result.skip[layer] - result.accuracies["full"][0]
        runs = loss[some].reshape(-1, len(config.stops)).mean(axis=1)
        error = float(np.std(runs, ddof=1) / np.sqrt(len(runs)))
        found += [
            Claim(
                f"skip-connection fine-tuning trains at least 70 % fewer parameters "
                f"than full ({_LI}): {name}",
                share,
                -math.inf,
                0.3,
                note=f"layer_{layer + 1}",
            ),
            Claim(
                f"and is at most two points less accurate on the new classes: {name}",
                float(runs.mean()),
                -0.02,
                math.inf,
                error=error,
            ),
        ]
    return found


def _choice(config, result):
    """Layers that scores choose against the last one."""
    indices, found = _indices(config, result), []
    for score, best in result.chosen.items():
        gains = [
            picked(table, chosen) - table[-1]
            for table, chosen in zip(result.layers, best, strict=True)
        ]
        gain = correlation.mean(np.mean(gains, axis=0), indices)
        found.append(
            Claim(
                f"the layer of best {score} is no worse to probe than the last one",
                gain.value,
                0.0,
                math.inf,
                error=gain.error,
                note=f"mean of {len(result.examined)} targets",
            )
        )
    return found


def _bound(result):
    """The few-shot bound against errors of the same moments."""
    slack = result.few_bounds[0] - result.few_errors
    return [
        Claim(
            "the few-shot bound (2603.03530, theorem 4.1) exceeds the error: least "
            "difference",
            float(slack.min()),
            0.0,
            math.inf,
        )
    ]


def picked(table: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Accuracy of the chosen layer of each network."""
    return np.take_along_axis(table, best[None], axis=0)[0]
