"""Validation that the data sets share."""

import math
from typing import Any

from jaxtheory.batching import check_number


def check_count(smallest: int = 1, **counts: Any) -> None:
    """Raise unless every named count is an integer of at least `smallest`."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < smallest:
            raise ValueError(
                f"`{name}` must be an integer of at least {smallest}, but was "
                f"{count!r}."
            )


def check_range(
    name: str, value: Any, *, positive: bool, at_most: float = math.inf
) -> None:
    """Raise unless a value is one finite number that is non-negative, or positive.

    A traced one is taken on trust.
    """
    holds = lambda v: (v > 0 if positive else v >= 0) and v <= at_most and v < math.inf
    limit = "" if at_most == math.inf else f" and at most {at_most:g}"
    kind = "positive" if positive else "non-negative"
    check_number(name, value, holds, kind + limit)
