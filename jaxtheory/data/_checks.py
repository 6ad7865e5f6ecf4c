"""Validation that the data sets share."""

from typing import Any


def check_count(smallest: int = 1, **counts: Any) -> None:
    """Raise unless every named count is an integer of at least `smallest`."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < smallest:
            raise ValueError(
                f"`{name}` must be an integer of at least {smallest}, but was "
                f"{count!r}."
            )


def check_range(name: str, value: Any, *, positive: bool) -> None:
    """Raise unless a Python number is non-negative, or positive; arrays pass."""
    if not isinstance(value, int | float):
        return
    if not (value > 0 if positive else value >= 0):
        kind = "positive" if positive else "non-negative"
        raise ValueError(f"`{name}` must be {kind}, but was {value}.")
