"""Published claims beside what an experiment measured, and who is right."""

import math
from typing import Any, NamedTuple

import numpy as np


class Claim(NamedTuple):
    """A statement with a number in it, and the number that was found.

    Attributes:
        claim: What is claimed, with its source.
        measured: The number found; NaN where it could not be.
        low: The claim holds from here on; ``-math.inf`` for no limit.
        high: To here.
        error: Standard error of `measured`; 0 where nothing is random.
        note: What else to know about the number.
    """

    claim: str
    measured: float
    low: float
    high: float
    error: float = 0.0
    note: str = ""

    @property
    def expected(self) -> str:
        """The range in which the claim holds."""
        if math.isinf(self.low) and math.isinf(self.high):
            raise ValueError(f"`{self.claim}` must have a limit: any number meets it.")
        if math.isinf(self.low):
            return f"at most {self.high:.4g}"
        if math.isinf(self.high):
            return f"at least {self.low:.4g}"
        return f"{self.low:.4g} to {self.high:.4g}"

    @property
    def verdict(self) -> str:
        """Whether the number, give or take two standard errors, is in the range."""
        low, high = self.measured - 2 * self.error, self.measured + 2 * self.error
        if math.isnan(low + high):
            return "not measured"
        if self.low <= low and high <= self.high:
            return "holds"
        if high < self.low or low > self.high:
            return "fails"
        return "fails" if self.error == 0 else "undecided"


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean over seeds and its standard error (``1/(n-1)``)."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def claims_table(claims: list[Claim]) -> str:
    """One line a claim: ``claim | expected | measured | verdict``.

    Args:
        claims: The claims, in the order in which to show them.

    Returns:
        The table, with aligned columns; notes stand behind the numbers.
    """
    rows = [("claim", "expected", "measured", "verdict")]
    for claim in claims:
        measured = f"{claim.measured:.4g}"
        if claim.error:
            measured += f" ± {claim.error:.2g}"
        if claim.note:
            measured += f" ({claim.note})"
        rows.append((claim.claim, claim.expected, measured, claim.verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
