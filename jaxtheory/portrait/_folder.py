"""The folder of a portrait: what is in it, whose it is, written so nothing is lost."""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxtheory.portrait._plan import Config

_PACKAGES = ("jaxtheory", "jax", "jaxlib", "flax", "optax", "lineax", "numpy")


def describe(config: Config) -> dict[str, Any]:
    """A configuration as JSON holds it; the folder itself is not part of it."""
    settings = dict(config.__dict__)
    del settings["out"]
    return settings


def environment(config: Config) -> dict[str, Any]:
    """Versions, device and seed."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "seed": config.seed,
    }


def open_folder(config: Config) -> Path:
    """Make the folder of a portrait, or find it to be of the same configuration.

    Args:
        config: A completed configuration.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds a portrait of another configuration, or files that
            are no portrait; nothing is touched.
    """
    folder = Path(str(config.out))
    file, settings = folder / "config.json", describe(config)
    if file.exists():
        held = json.loads(file.read_text())
        if held != settings:
            keys = sorted(held.keys() | settings.keys())
            differ = [key for key in keys if held.get(key) != settings.get(key)]
            what = ", ".join(
                f"{key} {held.get(key)!r} there, {settings.get(key)!r} here"
                for key in differ
            )
            raise ValueError(
                f"`out` must be a new folder or one of the same configuration, but "
                f"{str(folder)!r} holds another portrait ({what}). Choose another "
                "folder; nothing in this one was touched."
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"`out` must be a new or empty folder, but {str(folder)!r} holds something "
            "that is no portrait. Choose another folder; nothing in it was touched."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)
    return folder


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def write_json(file: Path, value: Any) -> None:
    """Write JSON; numbers that are not finite, which JSON cannot hold, become null."""
    write_text(file, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def write_lines(file: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(_finite(row), allow_nan=False) for row in rows]
    write_text(file, "\n".join(lines) + "\n")


def read_json(file: Path) -> Any:
    """Read JSON; null becomes NaN."""
    return _restore(json.loads(file.read_text()))


def _finite(value):
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _restore(value):
    if isinstance(value, dict):
        return {key: _restore(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_restore(entry) for entry in value]
    return math.nan if value is None else value
