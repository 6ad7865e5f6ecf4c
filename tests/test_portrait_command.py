"""The command line of the portrait: flags, what it says, what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import portrait as script
from jaxtheory.portrait import Config, Portrait
from jaxtheory.portrait._section import Row

ROOT = Path(__file__).parents[1]


def command_line(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["portrait", *map(str, flags)])
    script.main()


def made_up(folder, **changes):
    rows = [Row("test error", "3.5 %", "gap 3.5 %"), Row("NC1", "0.04", "0")]
    result = Portrait(folder, folder / "report.html", {}, rows, 100, None)
    return result._replace(**changes)


def test_flags_fill_the_configuration(monkeypatch, tmp_path):
    asked = []

    def stub(config):
        asked.append(config)
        return made_up(tmp_path)

    monkeypatch.setattr(script, "portrait", stub)
    flags = "--data mixture --model mlp --loss cross-entropy --optimizer momentum "
    flags += "--learning-rate 0.2 --batch-size 32 --num-steps 100 --seed 7 --out there"
    command_line(monkeypatch, *flags.split())
    command_line(monkeypatch)
    full = Config(
        "mixture", "mlp", "cross-entropy", "momentum", 0.2, 32, 100, 7, Path("there")
    )
    assert asked == [full, Config()]


def test_terminal_ends_with_the_numbers_and_the_report(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(script, "portrait", lambda config: made_up(tmp_path))
    command_line(monkeypatch)
    assert capsys.readouterr().out.strip().splitlines() == [
        "test error  3.5 %  gap 3.5 %",
        "NC1          0.04  0",
        "",
        f"Report: {tmp_path / 'report.html'}",
    ]


def test_divergence_is_said(monkeypatch, capsys, tmp_path):
    result = made_up(tmp_path, diverged_at=1234)
    monkeypatch.setattr(script, "portrait", lambda config: result)
    command_line(monkeypatch)
    assert "the loss or the update of step 1,234 is not" in capsys.readouterr().out


def test_interruption_is_said(monkeypatch, capsys, tmp_path):
    result = made_up(tmp_path, report=None, last_step=1234)
    monkeypatch.setattr(script, "portrait", lambda config: result)
    with pytest.raises(SystemExit) as caught:
        command_line(monkeypatch)
    assert caught.value.code == 130
    assert "at step 1,234. The same command continues" in capsys.readouterr().out


def test_interruption_outside_training_is_said(monkeypatch, capsys):
    def stub(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "portrait", stub)
    with pytest.raises(SystemExit) as caught:
        command_line(monkeypatch)
    assert caught.value.code == 130
    assert "The same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-steps 70", "`num_steps` must be a positive multiple of 50.*Try 50"),
        ("--num-steps 0", "`num_steps` must be a positive multiple of 50"),
        ("--learning-rate 0", "`learning_rate` must be positive and finite"),
        ("--learning-rate nan", "`learning_rate` must be positive and finite"),
        ("--learning-rate inf", "`learning_rate` must be positive and finite"),
        ("--batch-size 0", "`batch_size` must be between 1 and the 1,000 training"),
        ("--batch-size 1001", "`batch_size` must be between 1 and the 1,000 training"),
        ("--model cnn --data mixture", "`model` must be 'mlp'"),
        ("--loss cross-entropy --data single-index", "`loss` must be 'squared-error'"),
    ],
)
def test_what_cannot_run_is_refused(flags, message, monkeypatch, tmp_path, user_land):
    out = tmp_path / "new"
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        command_line(monkeypatch, *flags.split(), "--out", out)
    assert not out.exists()


def test_error_is_one_line_and_exit_code_1(tmp_path):
    flags = f"--num-steps 70 --out {tmp_path / 'new'}"
    run = subprocess.run(
        [sys.executable, "-m", "experiments.portrait", *flags.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: `num_steps`")
    assert "Traceback" not in run.stderr


def test_unknown_choice_is_refused_by_the_parser(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line(monkeypatch, "--data", "imagenet")
    assert caught.value.code == 2
    assert "digits" in capsys.readouterr().err
