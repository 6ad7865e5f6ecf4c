"""Numbers as the figures and sentences show them."""

import math
from typing import Any

_NOT_FINITE = "not finite"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as text, for example ``95.1 %``."""
    if not math.isfinite(fraction):
        return _NOT_FINITE
    value = 100 * fraction
    return f"{value:.{digits}f} %" if abs(value) < 1e4 else f"{compact(value)} %"


def compact(value: float) -> str:
    """A number in three significant digits without trailing clutter."""
    return f"{value:.3g}" if math.isfinite(value) else _NOT_FINITE


def only(values: Any) -> list[float]:
    """A NumPy array as a list of Python floats."""
    return [float(value) for value in values]
