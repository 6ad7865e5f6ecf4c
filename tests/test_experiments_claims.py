"""Claims: the verdict follows from the number, its error and the range alone."""

import math

import pytest

from experiments.claims import Claim, claims_table


@pytest.mark.parametrize(
    ("measured", "error", "verdict"),
    [
        (1.0, 0.0, "holds"),
        (1.2, 0.0, "fails"),
        (1.0, 0.01, "holds"),
        (1.04, 0.03, "undecided"),
        (1.2, 0.05, "fails"),
        (math.nan, 0.0, "not measured"),
        (1.0, math.nan, "not measured"),
    ],
)
def test_verdict(measured, error, verdict):
    assert Claim("ratio", measured, 0.95, 1.05, error).verdict == verdict


def test_limits_on_one_side():
    assert Claim("ratio", 3.0, 2.0, math.inf).verdict == "holds"
    assert Claim("ratio", 3.0, 2.0, math.inf).expected == "at least 2"
    assert Claim("ratio", 3.0, -math.inf, 2.0).verdict == "fails"
    assert Claim("ratio", 3.0, -math.inf, 2.0).expected == "at most 2"
    with pytest.raises(ValueError, match="`ratio` must have a limit"):
        _ = Claim("ratio", 3.0, -math.inf, math.inf).expected


def test_table_has_a_line_a_claim():
    claims = [
        Claim("ratio", 1.0, 0.95, 1.05, 0.01, "5 seeds"),
        Claim("p", 0.5, 0.9, 1),
    ]
    assert claims_table(claims).splitlines() == [
        "claim | expected     | measured           | verdict",
        "ratio | 0.95 to 1.05 | 1 ± 0.01 (5 seeds) | holds",
        "p     | 0.9 to 1     | 0.5                | fails",
    ]
