"""The notebooks run from the first cell to the last, and find what they say."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Appended to a notebook: what it found, for the test to judge.
FOUND = """
import json

print(json.dumps({
    "trace": float(gap),
    "limit": float(change),
    "errors": {name: float(error.value) for name, error in test_errors.items()},
    "lanczos": float(abs(top.values[0] / spectra["start"].eigenvalues[0] - 1)),
    "residual": float(fit.residual),
    "theory": np.interp(sizes, grid, theory.test_error).tolist(),
    "measured": measured.value.tolist(),
    "spread": measured.standard_error.tolist(),
}))
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_fit_to_be_opened_anywhere(path):
    text = path.read_text()
    assert len(text) < 300_000
    for place in ("/home/", "/root/", "/tmp/", "/work/", "site-packages"):
        assert place not in text
    notebook = nbformat.reads(text, as_version=4)
    badge, *_ = notebook.cells
    assert "colab-badge.svg" in badge.source
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 'if "google.colab" in sys.modules:\n    %pip' in codes[0].source
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    kinds = {output.output_type for cell in codes for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}


@pytest.mark.slow
def test_kernels_notebook_finds_what_it_says(tmp_path):
    (path,) = (path for path in NOTEBOOKS if path.stem == "kernels")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FOUND))
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    found = json.loads(notebook.cells[-1].outputs[0].text)
    assert found["trace"] < 1e-5
    # 5 / sqrt(128) of the limit: fluctuations are of this order in 1 / sqrt(width).
    assert 0 < found["limit"] < 0.44
    errors = found["errors"]
    fixed = [errors[name] for name in ("initial NTK", "infinite NTK", "NNGP")]
    assert max(errors["network"], errors["final NTK"]) < 0.1 < 0.4 < min(fixed)
    assert found["lanczos"] < 1e-3
    assert found["residual"] < 1e-4
    for theory, measured, spread in zip(
        found["theory"], found["measured"], found["spread"], strict=True
    ):
        assert abs(measured - theory) < 0.05 * theory + 3 * spread
