"""The notebooks run from the first cell to the last, and find what they say."""

import json
import math
import statistics
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Appended to a notebook: what it found, for the test to judge.
KERNELS_FOUND = """
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
CURVATURE_FOUND = """
import json

print(json.dumps({
    "difference": float(gap),
    "sum": float(sum_gap),
    "fisher": float(fisher_gap),
    "converged": [bool(top.converged.all()), bool(bottom.converged.all())],
    "signs": [float(top.values[-1]), float(bottom.values[0])],
    "residuals": [float(pairs.residuals[0]) for pairs in few.values()],
    "trace": [float(trace.value) for trace in traces.values()],
    "errors": [float(trace.standard_error) for trace in traces.values()],
    "blocks": float(sum(trace.value for trace in blocks.values())),
    "block_errors": [float(trace.standard_error) for trace in blocks.values()],
    "edges": [seen.ratio[-10:].tolist() for seen in edges.values()],
    "explained": plane.explained_variance.tolist(),
    "barriers": [float(line.barrier) for line in lines.values()],
    "distances": [matching.distance_before, matching.distance],
}))
"""
COLLAPSE_FOUND = """
import json

print(json.dumps({
    "nc1": [float(history.records[split].nc1[-1]) for split in ("train", "test")],
    "nc4": float(history.records["train"].nc4[-1]),
    "across": float(test.across.nc1),
    "predicted": [predicted.method, float(predicted.gap)],
    "distances": [distance.means, distance.classifier],
    "lengths": [distance.mean_scale, distance.classifier_scale],
    "objective": [gap.dual, gap.primal],
    "law": [float(law.pearson_r), float(law.ratio)],
    "chance": [float(chance.pearson_r.value), float(chance.drop_variation.value)],
    "bend": [float(low), float(law.quadratic), float(high)],
    "cosines": [cosines[20], cosines[4]],
    "best": int(choice.best),
    "probe": [float(error) for error in errors],
}))
"""

DYNAMICS_FOUND = """
import json

found = measured.measures
print(json.dumps({
    "stopped_at": int(first.stopped_at),
    "accuracy": float(first.records["accuracy"][-1]),
    "path": path.shape,
    "losses": evaluated["loss"][-1].tolist(),
    "noise_scale": scale.tolist(),
    "temperature": temperature,
    "p_value": float(diagnosis.p_value),
    "ratio": float(found["e_1_over_path_length"].value),
    "dimensions": [
        float(found["ph_dimension"].value),
        float(found["ph_dimension"].sign_flipped.mean),
        float(found["ph_dimension"].ou.mean),
    ],
    "outliers": [int(spectrum.noise.num_outliers) for spectrum in spectra],
    "sharpness": [float(one) for one in edges],
    "exponents": [found.exponents.value.tolist() for found in exponents.values()],
    "l1": [float(jnp.abs(end).sum()) for end in ends_of_scales],
    "l2": [float(jnp.linalg.norm(end)) for end in ends_of_scales],
    "gaps": [float(gap) for gap in gaps],
    "e_1": [float(found.value) for found in e_1.values()],
}))
"""
BOUNDS_FOUND = """
import json

print(json.dumps({
    "certificates": [b.certificate for b in (held_out, coded, *pac_bayes.values())],
    "holdout": [risk, held_out.value],
    "pac_bayes": [bound.value for bound in pac_bayes.values()],
    "coded": [coded_risk, coded.value, size],
    "vacuous": [name for name, bound in table.bounds.items() if bound.vacuous],
    "correlates": [n for n, bound in table.bounds.items() if not bound.certificate],
    "refused": table.refused,
    "reached": float(np.mean(population.stopped_at >= 0)),
    "ceiling": float(evaluation.ceiling.between_seeds),
    "taus": evaluation.tau.tolist(),
    "regrets": [chosen.regret.value, chosen.random_regret.value],
    "sizes": [small.size_before, small.size_after],
    "errors": [whole, small_error],
    "curves": {name: [float(s) for s in curve[0]] for name, curve in curves.items()},
    "noisy": heavy_whole,
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


def _execute(name, last_cell, folder):
    """What `last_cell` prints at the end of a notebook, read as JSON."""
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(last_cell))
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    return json.loads(notebook.cells[-1].outputs[0].text)


@pytest.mark.slow
def test_kernels_notebook_finds_what_it_says(tmp_path):
    found = _execute("kernels", KERNELS_FOUND, tmp_path)
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


@pytest.mark.slow
def test_curvature_notebook_finds_what_it_says(tmp_path):
    found = _execute("curvature", CURVATURE_FOUND, tmp_path)
    # Rounding of float32 over a step of 1e-3, and of one product.
    assert found["difference"] < 1e-3
    assert max(found["sum"], found["fisher"]) < 1e-5
    assert all(found["converged"])
    largest, smallest = found["signs"]
    assert smallest < 0 < largest
    cold, warm = found["residuals"]
    assert warm < cold / 10
    hutchinson, hutch, density = found["trace"]
    # Four standard errors of each difference; 8 probes give Student's tails.
    spread = found["errors"]
    assert abs(hutchinson - hutch) < 4 * math.hypot(spread[0], spread[1])
    assert abs(density - hutch) < 5 * math.hypot(spread[2], spread[1])
    error = math.hypot(spread[1], sum(found["block_errors"]))
    assert abs(found["blocks"] - hutch) < 4 * error
    for ratios in found["edges"]:
        assert abs(statistics.median(ratios) - 1) < 0.15
    assert 0.5 < sum(found["explained"]) <= 1 + 1e-5
    straight, matched, curve = found["barriers"]
    assert max(matched, curve) < straight / 2
    before, after = found["distances"]
    assert after < before


@pytest.mark.slow
def test_collapse_notebook_finds_what_it_says(tmp_path):
    found = _execute("collapse", COLLAPSE_FOUND, tmp_path)
    train, test = found["nc1"]
    assert train < 0.05 < test < 0.2
    assert train < found["across"]
    assert found["nc4"] == 0
    method, gap = found["predicted"]
    assert method == "closed_form"
    assert abs(gap) < 1e-12
    assert max(found["distances"]) < 0.4  # of at most 2
    assert all(0.8 < length < 1.3 for length in found["lengths"])
    bound, objective = found["objective"]
    assert 0 < bound < objective < 3 * bound
    correlation, ratio = found["law"]
    assert correlation < -0.97
    assert 0.3 < ratio < 0.7
    straight, equal = found["chance"]
    # Drops of chance are as straight more often than as equal.
    assert equal < straight
    low, bend, high = found["bend"]
    assert low < bend < high
    (mild, mild_optimum), (strong, strong_optimum) = found["cosines"]
    assert mild < strong
    assert mild_optimum < strong_optimum
    for seen, optimal in found["cosines"]:
        assert abs(seen - optimal) < 0.15
    probe = found["probe"]
    assert probe[found["best"]] < min(probe[3:])


@pytest.mark.slow
def test_dynamics_notebook_finds_what_it_says(tmp_path):
    found = _execute("dynamics", DYNAMICS_FOUND, tmp_path)
    assert 0 < found["stopped_at"] < 10_000
    assert found["accuracy"] == 1
    assert found["path"] == [750, 512]
    # Too small a rate learns slowly, too large a one not at all.
    losses = found["losses"]
    assert min(losses) < losses[0] < losses[-1]
    assert found["noise_scale"][-1] > 5 * found["noise_scale"][0]
    assert math.isclose(found["temperature"], 0.1 / 20 * 0.98)
    assert found["p_value"] < 0.05
    assert 0.9 < found["ratio"] <= 1 + 1e-5
    assert all(1 < dimension < 4 for dimension in found["dimensions"])
    before, *after = found["outliers"]
    assert before == 0 < max(after)
    slow, edge = found["sharpness"]
    assert slow < 0.8
    assert abs(edge - 1) < 0.15
    assert all(abs(one) < 0.05 for pair in found["exponents"] for one in pair)
    assert found["l1"] == sorted(found["l1"])
    assert found["l2"] == sorted(found["l2"], reverse=True)
    assert max(found["gaps"]) < 0.02
    exact, sketched, rescaled = found["e_1"]
    # The published errors of a sketch with 256 buckets: 4.4 %, and .1 % rescaled.
    assert abs(sketched / exact - 1) < 0.044
    assert abs(rescaled / exact - 1) < 1e-3


@pytest.mark.slow
def test_bounds_notebook_finds_what_it_says(tmp_path):
    found = _execute("bounds", BOUNDS_FOUND, tmp_path)
    assert all(found["certificates"])
    risk, bound = found["holdout"]
    assert risk < bound < 0.1
    initial, alone, trained = found["pac_bayes"]
    assert 0.5 < initial < 1
    assert bound < trained < 0.2
    assert abs(trained - alone) < 0.02  # the work is the prior's
    risk, bound, size = found["coded"]
    assert risk < bound < 0.9
    assert size < 100
    assert found["vacuous"] == ["path_norm", "spectral"]
    assert sorted(found["correlates"]) == ["finite_set", "topological"]
    assert found["refused"] == {}
    assert found["reached"] > 0.9
    assert found["ceiling"] < 0.5
    assert max(map(abs, found["taus"])) < 0.6
    assert min(found["regrets"]) >= 0
    before, after = found["sizes"]
    assert before > 8 * after
    whole, smaller = found["errors"]
    assert smaller < whole + 0.03
    for sizes in found["curves"].values():
        assert sizes == sorted(sizes, reverse=True)
    assert max(found["noisy"]) < 0.1
