"""How much is left out: a share, or what an error allows."""

from typing import Any

from jaxtheory.batching import check_number


def check_amount(fraction: Any, relative_error: Any) -> tuple[str, Any]:
    """Which of the two was given, by its name, and its value.

    Args:
        fraction: A share in [0, 1), or None.
        relative_error: An error in [0, 1), or None.

    Raises:
        ValueError: Both or neither are given, or it is out of range.
    """
    if (fraction is None) == (relative_error is None):
        raise ValueError(
            "Give either `fraction` or `relative_error`, but "
            f"{'neither was' if fraction is None else 'both were'} given."
        )
    name = "relative_error" if fraction is None else "fraction"
    amount = relative_error if fraction is None else fraction
    check_number(name, amount, lambda a: 0 <= a < 1, "in [0, 1)")
    return name, amount
