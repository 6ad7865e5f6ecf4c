"""How an experiment ends: its folder, with what was run, on what, and the findings."""

import dataclasses
import json
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

_PACKAGES = ("jaxtheory", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def write_folder(config: Any, numbers: Any, table: str, figure: Figure) -> None:
    """Write ``config.out``, over what was there of a run, and close the figure.

    Args:
        config: A dataclass with the folder in its field `out`; goes to ``config.json``.
        numbers: The measurements, of containers and arrays; to ``result.json``.
        table: What the terminal shows, to ``table.txt``.
        figure: To ``figure.png``.
    """
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", dataclasses.asdict(config))
    _write_json(folder / "environment.json", environment())
    _write_json(folder / "result.json", numbers)
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    figure.savefig(folder / "figure.png", dpi=150)
    plt.close(figure)


def run_command(
    config: Any,
    run: Callable[[Any], Any],
    report: Callable[[Any, Any], str],
    draw: Callable[[Any, Any], Figure],
) -> None:
    """Run an experiment, write its folder and print its table.

    Args:
        config: A dataclass with the folder in its field `out`.
        run: ``run(config) -> result``; what it refuses as ValueError ends the program.
        report: ``report(config, result)``, the table.
        draw: ``draw(config, result)``, the figure.
    """
    matplotlib.use("Agg")
    try:
        result = run(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    table = report(config, result)
    write_folder(config, result, table, draw(config, result))
    print(f"{table}\n\nNumbers and figure: {config.out}")


def environment() -> dict[str, Any]:
    """Versions and device."""
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
    }


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(_plain(value), indent=1) + "\n", encoding="utf-8")


def _plain(value):
    """As JSON holds it: NamedTuples by name, what is not finite by its name."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
