"""An evaluation as text."""

import numpy as np

from jaxtheory.bounds.evaluate._evaluate import Evaluation

_WIDTH = 8


def to_text(evaluation: Evaluation) -> str:
    """The table of an evaluation, best ``|tau|`` first.

    Args:
        evaluation: What `evaluate` returned.

    Returns:
        Lines of text: what chance and noise do, then one line a measure. A dash stands
        for what is undefined; an asterisk marks taus beyond the band.

    Example:
        >>> import jax
        >>> from jaxtheory.bounds.evaluate import evaluate
        >>> cells = {"rate": [1, 1, 2, 2, 3, 3], "width": [8, 16, 8, 16, 8, 16]}
        >>> gap = np.arange(12.0).reshape(6, 2)
        >>> text = to_text(evaluate({"one": gap}, gap, cells, key=jax.random.key(0)))
        >>> print(text.splitlines()[-1].split()[:4])
        ['one', '1.00*', '1.00', '1.00']
    """
    e = evaluation
    order = np.argsort(-np.abs(np.nan_to_num(e.tau)), kind="stable")
    columns = {
        "low": e.low,
        "high": e.high,
        "granul.": e.granulated,
        "CMI": e.information,
        "worst": e.worst_sign_error,
        "mean": e.mean_sign_error,
    }
    if e.given:
        columns |= {
            "partial": e.partial,
            "p. low": e.partial_low,
            "p. high": e.partial_high,
            "p. rho": e.partial_spearman,
        }
    wide = max(len(name) for name in ("measure", *e.measures))
    cells = ("tau", *columns, "missing")
    lines = [
        f"noise ceiling {_number(e.ceiling.between_seeds)} between seeds, "
        f"{_number(e.ceiling.from_other_seeds)} from other seeds, "
        f"{_number(e.ceiling.of_expected_gap)} of the expected gap; "
        f"best |tau| by chance {_number(e.band)} (*: beyond it); "
        f"CMI by chance {_number(e.information_by_chance)}",
        "low, high: 95 % over cells; worst, mean: sign error over environments"
        + (f"; p.: partial given {', '.join(e.given)}" if e.given else ""),
        "measure".ljust(wide) + "".join(name.rjust(_WIDTH) for name in cells),
    ]
    for row in order:
        star = "*" if abs(e.tau[row]) > e.band else " "
        tau = (_number(e.tau[row]) + star).rjust(_WIDTH)
        rest = [_number(column[row]).rjust(_WIDTH) for column in columns.values()]
        missing = str(e.num_left_out[row]).rjust(_WIDTH)
        lines.append(e.measures[row].ljust(wide) + tau + "".join(rest) + missing)
    return "\n".join(line.rstrip() for line in lines)


def _number(value):
    """Two digits, or a dash."""
    return "-" if np.isnan(value) else f"{value:.2f}"
