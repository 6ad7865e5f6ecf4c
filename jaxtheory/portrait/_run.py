"""From a configuration to a finished portrait: train, read, draw, write."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxtheory import dynamics
from jaxtheory.dynamics import History
from jaxtheory.portrait import _folder
from jaxtheory.portrait._figure import overview, section_svg
from jaxtheory.portrait._page import Block, page
from jaxtheory.portrait._plan import (
    NUM_RECORDS,
    OPTIMIZERS,
    Config,
    Plan,
    complete,
    make_plan,
)
from jaxtheory.portrait._section import Row, Section
from jaxtheory.portrait.sections import SECTIONS

# Of what sections read from a run; numbers of another version are measured again.
_VERSION = 8


class Portrait(NamedTuple):
    """A portrait on disk.

    Attributes:
        folder: Where everything is.
        report: The page, None when training was interrupted before its end.
        numbers: Numbers of every section, by its name.
        rows: The table of key numbers.
        last_step: The last step that was recorded.
        diverged_at: The first step whose loss or update was not finite, or None.
    """

    folder: Path
    report: Path | None
    numbers: dict[str, Any]
    rows: list[Row]
    last_step: int
    diverged_at: int | None


def portrait(config: Config, *, progress: bool = True) -> Portrait:
    """Train a network, measure it the way theory describes it, and write the report.

    Writes to the folder ``config.out``: ``config.json``, ``env.json``,
    ``metrics.jsonl`` (one line a record), ``trajectory/`` (the recorded run, see
    `dynamics.train`), ``numbers.json``, ``portrait.png`` and ``report.html``. The same
    configuration again continues an interrupted run, and re-reads a finished one.

    Args:
        config: What to train, and where the portrait goes.
        progress: Show progress bars.

    Returns:
        What was measured and where the report is.

    Raises:
        ValueError: The configuration cannot be run, or its folder holds something else.

    Example:
        >>> import tempfile, pathlib
        >>> from jaxtheory.portrait import Config, portrait
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "mine"
        >>> result = portrait(
        ...     Config(data="mixture", num_steps=50, out=folder), progress=False
        ... )  # doctest: +SKIP
        >>> result.report.name  # doctest: +SKIP
        'report.html'
    """
    config = complete(config)
    plan = make_plan(config)
    sections = [section for section in SECTIONS if section.applies(config)]
    folder = _folder.open_folder(config)
    _folder.write_json(folder / "env.json", _folder.environment(config))
    history = _train(plan, sections, folder, progress)
    _folder.write_lines(folder / "metrics.jsonl", _metrics(history))
    last_step = int(history.steps[-1])
    if last_step < config.num_steps and history.diverged_at is None:
        return Portrait(folder, None, {}, [], last_step, None)
    numbers = _read(plan, sections, history, folder, progress)
    report, rows = _write(config, sections, numbers, history, folder, progress)
    return Portrait(folder, report, numbers, rows, last_step, history.diverged_at)


def _train(
    plan: Plan, sections: list[Section], folder: Path, progress: bool
) -> History:
    """The recorded run, continued where it stopped."""
    config = plan.config
    gather = lambda pick: {
        name: measure
        for section in sections
        for name, measure in pick(section)(plan).items()
    }
    return dynamics.train(
        plan.objective,
        plan.state,
        plan.optimizer,
        (plan.x_train, plan.y_train),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        record=gather(lambda section: section.record),
        trace=gather(lambda section: section.trace),
        record_every=config.num_steps // NUM_RECORDS,
        store=folder / "trajectory",
        resume=True,
        key=plan.key,
        progress=progress,
    )


def _metrics(history: History) -> list[dict[str, Any]]:
    """The scalars of each record, flat."""
    scalars = {
        path: values
        for path, values in _flat(history.records)
        if np.ndim(values) == 1 and np.issubdtype(np.asarray(values).dtype, np.floating)
    }
    return [
        {"step": int(step)} | {path: float(v[row]) for path, v in scalars.items()}
        for row, step in enumerate(history.steps)
    ]


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        return [
            pair
            for key, value in tree.items()
            for pair in _flat(value, f"{prefix}/{key}" if prefix else str(key))
        ]
    return [(prefix, tree)]


def _read(
    plan: Plan, sections: list[Section], history: History, folder: Path, progress: bool
) -> dict[str, Any]:
    """The numbers of every section: from the folder if they are there."""
    file = folder / "numbers.json"
    if file.exists():
        held = _folder.read_json(file)
        if held.get("version") == _VERSION:
            return held["sections"]
    numbers = {}
    with dynamics.ticking(tqdm(total=len(sections), disable=not progress)) as bar:
        for section in sections:
            bar.set_description(f"measuring: {section.title.lower()}")
            numbers[section.name] = section.read(plan, history)
            bar.update()
    _folder.write_json(file, {"version": _VERSION, "sections": numbers})
    return _folder.read_json(file)["sections"]


def _write(config, sections, numbers, history, folder, progress):
    """The picture and the page."""
    diverged = history.diverged_at is not None
    blocks = [
        _block(section, numbers[section.name], diverged)
        for section in tqdm(sections, desc="drawing", disable=not progress)
    ]
    rows = [row for section in sections for row in section.rows(numbers[section.name])]
    draws: list[tuple[str, Callable[[Any], None]]] = [
        (section.title, functools.partial(section.draw, numbers[section.name]))
        for section in sections
    ]
    overview(folder / "portrait.png", title(config), draws)
    report = folder / "report.html"
    text = page(
        title=title(config),
        settings=_folder.describe(config),
        environment=_folder.read_json(folder / "env.json"),
        rows=rows,
        blocks=blocks,
        diverged_at=history.diverged_at,
        last_step=int(history.steps[-1]),
    )
    _folder.write_text(report, text)
    return report, rows


def _block(section: Section, numbers: Any, diverged: bool) -> Block:
    picture = section_svg(functools.partial(section.draw, numbers))
    findings = section.findings(numbers)
    if diverged:
        # Theory speaks of runs that do not: there is nothing to agree with.
        findings = [finding._replace(verdict="measured") for finding in findings]
    return Block(section.name, section.title, picture, findings)


def title(config: Config) -> str:
    """One line that names the run."""
    batch = "full batch"
    if config.batch_size is not None:
        batch = f"batches of {config.batch_size:,}"
    return (
        f"{config.model.upper()} on {config.data}, {config.loss.replace('-', ' ')}, "
        f"{OPTIMIZERS[config.optimizer]}, η = {config.learning_rate:g}, {batch}, "
        f"{config.num_steps:,} steps"
    )
