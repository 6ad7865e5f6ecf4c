"""The training path: its length, its tree, its dimension, beside two nulls."""

import jax
import numpy as np

from jaxtheory import dynamics
from jaxtheory.portrait._section import Finding, Row, Section, always, nothing
from jaxtheory.portrait._style import ACCENT, compact, only

_DRAWN = 400
_SKETCH = dynamics.sketch(dim=1024)


def trace(plan):
    """A sketch of every iterate."""
    return {"path": _SKETCH}


def read(plan, history):
    """Topology of the sketched path, and its shadow on its two main directions."""
    points, lengths = history.trace["path"], history.trace["step_length"]
    finite = np.isfinite(points).all(axis=1) & np.isfinite(lengths)
    points, lengths = points[finite].astype(float), lengths[finite].astype(float)
    if len(points) < 2:
        return {"num_points": len(points), "too_few": True}
    result = dynamics.path_topology(
        points, step_lengths=lengths[:-1], key=jax.random.fold_in(plan.key, 2**30 + 1)
    )
    centred = points - points.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    shown = np.unique(np.linspace(0, len(points) - 1, _DRAWN).astype(int))
    share = singular[:2] ** 2 / np.sum(singular**2)
    return {
        "num_points": len(points),
        "too_few": bool(result.too_few),
        "path_length": float(result.path_length),
        "e_1": float(result.e_1),
        "e_1_over_path_length": float(result.e_1_over_path_length),
        "path": _dimension(result),
        "sign_flipped": _dimension(result.null_sign_flipped),
        "ou": _dimension(result.null_ou),
        "plane": [only(row) for row in centred[shown] @ directions[:2].T],
        "plane_steps": [int(step) for step in shown],
        "plane_share": only(share),
    }


def _dimension(result):
    return {
        "ph_dimension": float(result.ph_dimension),
        "ph_standard_error": float(result.ph_standard_error),
        "e_1_over_path_length": float(result.e_1_over_path_length),
    }


def draw(numbers, ax):
    """The path in its principal plane, from light to dark."""
    if "plane" not in numbers:
        ax.text(0.5, 0.5, "too few points", transform=ax.transAxes, ha="center")
        return
    x, y = np.asarray(numbers["plane"]).T
    ax.plot(x, y, color="#cccccc", lw=0.8)
    ax.scatter(x, y, c=numbers["plane_steps"], cmap="viridis_r", s=7, zorder=2)
    ax.plot(x[0], y[0], "o", mfc="white", mec=ACCENT, ms=8, label="start")
    ax.plot(x[-1], y[-1], "*", color=ACCENT, ms=12, label="end")
    first, second = (100 * share for share in numbers["plane_share"])
    ax.set_xlabel(f"direction 1 ({first:.0f} % of the variance)")
    ax.set_ylabel(f"direction 2 ({second:.0f} %)")
    ax.legend()


def findings(numbers):
    """Whether E_1 says more than the length, and whether the path looks random."""
    if numbers["too_few"]:
        text = f"The path has {numbers['num_points']:,} points: too few for a dimension"
        return [Finding(text + " (500 are needed).", "measured")]
    ratio = numbers["e_1_over_path_length"]
    same = ratio > 0.95
    first = Finding(
        f"The spanning tree of the {numbers['num_points']:,} iterates has length "
        f"E₁ = {compact(numbers['e_1'])}, {ratio:.3f} of the length of the path: "
        + (
            "E₁ measures how far training walked, and little else."
            if same
            else "the path comes back to itself."
        ),
        "measured",
    )
    own = numbers["path"]
    value, error = own["ph_dimension"], own["ph_standard_error"]
    nulls = [numbers["sign_flipped"], numbers["ou"]]
    # Estimated errors are optimistic (subsets overlap), so three of them.
    apart = all(
        abs(value - null["ph_dimension"])
        > 3 * np.hypot(error, null["ph_standard_error"])
        for null in nulls
    )
    second = Finding(
        f"Its persistent-homology dimension is {value:.2f} ± {error:.2f}; with "
        f"randomly flipped increments it would be {nulls[0]['ph_dimension']:.2f}, for "
        "an Ornstein-Uhlenbeck process of the same autocorrelation "
        f"{nulls[1]['ph_dimension']:.2f}: "
        + (
            "the path differs from both."
            if apart
            else "not told apart from such noise by this number."
        ),
        "measured",
    )
    return [first, second]


def rows(numbers):
    """Length and dimension."""
    if numbers["too_few"]:
        return [Row("path", "too few points", "500 needed")]
    nulls = [numbers[name]["ph_dimension"] for name in ("sign_flipped", "ou")]
    ratio = numbers["e_1_over_path_length"]
    return [
        Row("path length", compact(numbers["path_length"]), f"E₁ / length {ratio:.3f}"),
        Row(
            "persistent-homology dimension",
            f"{numbers['path']['ph_dimension']:.2f}",
            f"nulls {nulls[0]:.2f}, {nulls[1]:.2f}",
        ),
    ]


SECTION = Section(
    "path", "The training path", always, nothing, trace, read, draw, findings, rows
)
