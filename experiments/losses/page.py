"""Table, claims and figure of penalties written out."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.claims import Claim, claims_table, mean_and_error
from experiments.losses.arms import ARMS


def _interval(values):
    """Half the width of the 95 % interval of a mean (Student's)."""
    return stats.t.ppf(0.975, len(values) - 1) * mean_and_error(values)[1]


def claims(config: Any, result: Any) -> list[Claim]:
    """Each arm helps: its test error is below that of plain gradient descent."""
    del config
    plain, found = result.found["plain"].test, []
    for name, arm in result.found.items():
        if name == "plain":
            continue
        # The same splits and the same initial weights: differences are paired.
        mean, error = mean_and_error(100 * (arm.test - plain))
        text = f"{name} ({ARMS[name].says}) helps: points of test error, less plain"
        found.append(Claim(text, mean, -np.inf, 0.0, error))
    return found


def report(config: Any, result: Any) -> str:
    """Errors of each arm with 95 % intervals, what was chosen, and the claims."""
    head = (
        f"{'':<16}{'test error, %':<18}{'train error, %':<18}{'train loss':<14}chosen"
    )
    lines = [head]
    for name, arm in result.found.items():
        setting = ARMS[name].settings[arm.chosen]
        size = "all" if setting.batch_size is None else str(setting.batch_size)
        test = f"{100 * np.mean(arm.test):.2f} +- {100 * _interval(arm.test):.2f}"
        lines.append(
            f"{name:<16}{test:<18}{100 * np.mean(arm.train_error):<18.2f}"
            f"{np.mean(arm.loss):<14.3g}"
            f"rate {setting.learning_rate:g}, batch {size}, "
            f"strength {setting.strength:g}"
        )
    lines += [
        f"(95 % intervals over {config.num_seeds} splits; "
        f"{len(ARMS['plain'].settings)} candidates an arm, chosen on "
        f"{config.num_tuning} other splits)",
        "",
    ]
    return "\n".join([*lines, claims_table(claims(config, result))])


def draw(config: Any, result: Any) -> Figure:
    """Test errors, and their differences from plain gradient descent."""
    del config
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 3.6), layout="constrained", sharey=True
    )
    names = list(result.found)
    plain = result.found["plain"].test
    for row, name in enumerate(names):
        test = 100 * result.found[name].test
        axes[0].plot(test, np.full(len(test), row), "o", ms=3, color="gray", alpha=0.6)
        axes[0].errorbar(
            np.mean(test), row, xerr=_interval(test), fmt="s", color="C0", capsize=3
        )
        if name != "plain":
            gap = test - 100 * plain
            axes[1].errorbar(
                np.mean(gap), row, xerr=_interval(gap), fmt="s", color="C0", capsize=3
            )
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="test error, % (95 % intervals)")
    axes[1].axvline(0, color="gray", ls=":", lw=1)
    axes[1].set(xlabel="points of test error, less plain gradient descent")
    return figure
