"""The README's example runs and prints what the README says."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_examples_print_what_the_readme_says(capsys):
    """One after the other, the second on what the first left."""
    programs = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    outputs = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    names = {"__name__": "readme"}
    for program, expected in zip(programs, outputs, strict=True):
        exec(compile(program, "README.md", "exec"), names)
        assert capsys.readouterr().out == expected
