"""The folder of an experiment: what is in it can be read again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.folder import write_folder


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path


def test_numbers_of_numpy_are_those_of_json(tmp_path):
    numbers = {
        "met": np.bool_(True),
        "ratio": np.float32(0.5),
        "steps": np.arange(2),
        "missing": np.float64("nan"),
    }
    write_folder(Config(tmp_path / "run"), numbers, "claim | verdict", Figure())
    held = json.loads((tmp_path / "run" / "result.json").read_text())
    assert held == {"met": True, "ratio": 0.5, "steps": [0, 1], "missing": "nan"}
    assert (tmp_path / "run" / "table.txt").read_text() == "claim | verdict\n"
    assert (tmp_path / "run" / "figure.png").stat().st_size > 0
