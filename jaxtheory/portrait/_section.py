"""What a section of the portrait is: what to record, read, draw and say."""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any, Literal, NamedTuple

from jaxtheory._types import Measurement, StatefulMeasurement
from jaxtheory.dynamics import History
from jaxtheory.portrait._plan import Config, Plan

Numbers = Mapping[str, Any]


class Finding(NamedTuple):
    """One sentence: what theory expects, what was measured, whether they agree.

    Attributes:
        text: The sentence, computed from the numbers.
        verdict: "agrees" or "disagrees" where theory makes a checkable statement that
            applies here; "measured" where it makes none.
    """

    text: str
    verdict: Literal["agrees", "disagrees", "measured"]


class Row(NamedTuple):
    """One line of the table of key numbers.

    Attributes:
        quantity: What was measured.
        measured: The number, as text.
        reference: What to hold it against, as text.
    """

    quantity: str
    measured: str
    reference: str


class Section(NamedTuple):
    """One measurement of the portrait, from recording to the sentence under its figure.

    `read` turns a run into plain numbers (floats, strings and lists of them); figure,
    sentences and table use nothing else, so that a finished portrait is drawn again
    without measuring again.

    Attributes:
        name: Key of the section in `numbers.json`.
        title: Heading on the page.
        applies: Whether the section makes sense for a configuration.
        record: Measurements to take at every record during training.
        trace: Measurements to take at every step.
        read: Numbers of a finished run.
        draw: Draws the numbers into matplotlib axes.
        findings: Sentences that go under the figure.
        rows: Lines of the table of key numbers.
    """

    name: str
    title: str
    applies: Callable[[Config], bool]
    record: Callable[[Plan], Mapping[str, Measurement | StatefulMeasurement]]
    trace: Callable[[Plan], Mapping[str, Measurement]]
    read: Callable[[Plan, History], Numbers]
    draw: Callable[[Numbers, Any], None]
    findings: Callable[[Numbers], list[Finding]]
    rows: Callable[[Numbers], list[Row]]


def always(config: Config) -> bool:
    """The section applies to every configuration."""
    return True


def classification(config: Config) -> bool:
    """The section applies where targets are classes."""
    return config.data != "single-index"


def is_curve(values: Iterable[float]) -> bool:
    """Whether a curve ends at a finite number and has another to compare it with.

    The curves of a run that diverged early may not.
    """
    values = list(values)
    return isfinite(values[-1]) and sum(map(isfinite, values)) > 1


def lacking(why: str) -> Finding:
    """What a section says when the run did not give it enough to judge."""
    return Finding(f"There is nothing to judge here: {why}.", "measured")


def nothing(plan: Plan) -> Mapping[str, Measurement]:
    """No measurements during training."""
    return {}
