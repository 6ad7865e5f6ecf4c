"""The portrait as a user meets it: one small run, its page, and what can go wrong."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matplotlib.image import imread
from scipy.sparse.linalg import LinearOperator, eigsh
from sections_said import CHROMIUM, LOOK

from experiments import portrait as script
from jaxtheory import kernels
from jaxtheory.dynamics import History, _store
from jaxtheory.portrait import Config, Portrait, _plan, _run, portrait
from jaxtheory.portrait.sections import (
    SECTIONS,
    SHARPNESS,
    TRAINING,
    _bounds,
    _landscape,
    _lifetimes,
    _spectrum,
)

ROOT = Path(__file__).parents[1]


class Finished(NamedTuple):
    """The one portrait that most tests look at, with what it was made from."""

    config: Config
    result: Portrait
    plan: Any
    history: History


@pytest.fixture(scope="module", autouse=True)
def small_data():
    """At most 200 training and 200 test examples, few draws, probes and points."""
    whole = _plan._dataset

    def small(config, key):
        data = whole(config, key)
        names = ("x_train", "y_train", "x_test", "y_test")
        return data._replace(**{name: getattr(data, name)[:200] for name in names})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plan, "_dataset", small)
        patch.setattr(_bounds, "_DRAWS", 20)
        patch.setattr(_landscape, "_POINTS", 5)
        patch.setattr(_lifetimes, "_DRAWS", 2)
        patch.setattr(_spectrum, "_PROBES", 2)
        patch.setattr(_spectrum, "_ITERATIONS", 16)
        yield


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """A portrait of 50 steps on minibatches of digits."""
    out = tmp_path_factory.mktemp("portraits") / "digits"
    config = Config(batch_size=50, num_steps=50, out=out)
    seen, train = [], _run._train

    def spy(plan, *rest):
        seen.extend((plan, train(plan, *rest)))
        return seen[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "_train", spy)
        result = portrait(config, progress=False)
    return Finished(config, result, *seen)


def strict(text):
    """JSON without the NaN and Infinity that Python adds to it."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def snapshot(folder):
    """Content and time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def names(sections):
    return [section.name for section in sections]


def test_folder_holds_everything_as_strict_json(finished):
    folder = finished.result.folder
    config = strict((folder / "config.json").read_text())
    assert config["data"] == "digits"
    assert (config["num_steps"], config["learning_rate"]) == (50, 0.1)
    environment = strict((folder / "env.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["device"] == jax.devices()[0].device_kind
    assert environment["seed"] == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [strict(line) for line in lines]
    assert [row["step"] for row in metrics] == list(range(51))
    losses = finished.history.records["evaluation"]["train"]["loss"]
    assert [row["evaluation/train/loss"] for row in metrics] == losses.tolist()
    assert {"curvature/batch", "noise/noise_scale", "collapse/test/nc1"} <= {
        *metrics[0]
    }
    numbers = strict((folder / "numbers.json").read_text())
    assert list(numbers["sections"]) == names(SECTIONS)
    assert list((folder / "trajectory").glob("*.safetensors"))
    assert not list(folder.rglob("*.tmp"))


def test_numbers_are_those_of_the_run(finished):
    plan, history, numbers = finished.plan, finished.history, finished.result.numbers
    outputs = plan.apply_fn(history.state.params, plan.x_test)
    error = np.mean(np.argmax(outputs, axis=1) != plan.y_test)
    assert numbers["training"]["error"]["test"][-1] == pytest.approx(error)
    assert numbers["kernel"]["network"]["error"] == pytest.approx(error)
    assert numbers["bounds"]["test_error"] == pytest.approx(error)
    assert numbers["training"]["num_params"] == sum(
        leaf.size for leaf in jax.tree.leaves(history.state.params)
    )
    followed = history.records["curvature"]["batch"]
    assert numbers["sharpness"]["kind"] == "batch"
    assert numbers["sharpness"]["end_ratio"] == pytest.approx(
        np.median(followed[-5:]) / 20, rel=1e-6
    )
    assert numbers["path"]["num_points"] == 50
    first, *_, last = np.asarray(history.records["probe_kernel"], float)
    cosine = np.sum(first * last) / np.linalg.norm(first) / np.linalg.norm(last)
    assert numbers["kernel_evolution"]["distance"][-1] == pytest.approx(
        1 - cosine, abs=1e-5
    )
    assert 1 - cosine > 1e-4


def test_collapse_is_that_of_the_last_hidden_layer(finished):
    """Against NumPy: angles, the plane of three classes, and drops of chance."""
    plan, numbers = finished.plan, finished.result.numbers
    params = {"params": finished.history.state.params}
    *_, features = plan.module.apply(params, plan.x_train, method="features").values()
    features, labels = np.asarray(features, float), np.asarray(plan.y_train)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(10)])
    centred = means - means.mean(axis=0)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = (units @ units.T)[~np.eye(10, dtype=bool)]
    away = np.mean(np.abs(cosines + 1 / 9))
    assert numbers["class_cosines"]["end"] == pytest.approx(away, rel=1e-4)
    np.testing.assert_allclose(numbers["class_cosines"]["means"], means, atol=1e-5)
    plane = numbers["simplex_plane"]["train"]
    points, kept = np.array(plane["points"]), np.array(plane["labels"])
    assert kept.tolist() == labels[labels < 3].tolist()
    corners = np.stack([points[kept == c].mean(axis=0) for c in range(3)])
    sides = lambda p: np.linalg.norm(p - np.roll(p, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides(corners), sides(means[:3]), rtol=1e-4)
    law = numbers["separation"]["final"]
    drops = -np.diff(np.log(law["values"]))
    random = np.random.default_rng(0).uniform(size=(10_000, len(drops)))
    variation = lambda d: np.std(d, axis=-1) / np.abs(np.mean(d, axis=-1))
    share = np.mean(variation(random) <= variation(drops)) if drops.sum() > 0 else 1
    assert law["p_value"] == pytest.approx(share, abs=0.02)  # 4 sqrt(2) of its errors


def test_spectrum_is_that_of_the_hessian_at_both_ends(finished):
    """Against a Lanczos of other code on the loss, and the monitor's own record."""
    plan, history = finished.plan, finished.history
    numbers = finished.result.numbers["spectrum"]
    mean_loss = lambda params: jax.numpy.mean(
        plan.loss_fn(plan.apply_fn(params, plan.x_train), plan.y_train)
    )
    params, back = ravel_pytree(history.state.params)
    gradient = jax.grad(lambda flat: mean_loss(back(flat)))
    product = jax.jit(lambda v: jax.jvp(gradient, (params,), (v,))[1])
    p = len(params)
    operator = LinearOperator((p, p), matvec=product, dtype=np.float32)  # pyright: ignore[reportCallIssue]
    largest = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
    found = numbers["end"]["eigenvalues"]
    np.testing.assert_allclose(found[:3], largest[::-1], rtol=1e-3)
    recorded = history.records["curvature"]["sharpness"]
    assert recorded[-1] == pytest.approx(found[0], rel=0.02)
    assert recorded[0] == pytest.approx(numbers["start"]["eigenvalues"][0], rel=0.02)
    assert numbers["num_params"] == p
    counts = np.sum([list(v) for v in numbers["end"]["per_decade"].values()], axis=0)
    width = numbers["places"][1] - numbers["places"][0]
    assert 10 < width * counts.sum() < 1.01 * p


def test_landscape_is_the_loss_around_the_path(finished):
    plan, history = finished.plan, finished.history
    numbers = finished.result.numbers["landscape"]
    stacked = jax.tree.leaves(history.records["params"])
    path = np.concatenate([np.reshape(a, (51, -1)) for a in stacked], 1).astype(float)
    _, singular, directions = np.linalg.svd(
        path - path.mean(axis=0), full_matrices=False
    )
    share = singular**2 / np.sum(singular**2)
    np.testing.assert_allclose(numbers["share"], share[:2], rtol=1e-3)
    coordinates = (path - path[-1]) @ directions[:2].T
    signs = np.sign(coordinates[0])
    np.testing.assert_allclose(
        numbers["path"], coordinates * signs, atol=1e-3 * np.abs(coordinates).max()
    )
    assert numbers["beneath"][-1] == pytest.approx(1, abs=1e-4)
    place = np.array([numbers["first"][0], numbers["second"][3]]) * signs
    _, back = ravel_pytree(history.state.params)
    moved = back(jax.numpy.asarray(path[-1] + place @ directions[:2], "float32"))
    outputs = plan.apply_fn(moved, plan.x_train)
    loss = float(np.mean(plan.loss_fn(outputs, plan.y_train)))
    assert numbers["losses"][0][3] == pytest.approx(loss, rel=1e-3)


def test_picture_opens_at_a_sensible_size(finished):
    pixels = imread(finished.result.folder / "portrait.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1500
    assert 0.01 < np.mean(pixels[..., :3].min(axis=2) < 0.9) < 0.5


def page_of(result):
    assert result.report is not None
    return result.report.read_text()


def figures(page):
    return [
        base64.b64decode(data).decode()
        for data in re.findall("src='data:image/svg[+]xml;base64,([^']+)'", page)
    ]


def test_page_is_self_contained(finished):
    page = page_of(finished.result)
    pictures = figures(page)
    assert len(pictures) == page.count("<img") == len(SECTIONS)
    assert not re.search(r"https?:|<link|<script|@import|<iframe", page)
    for text in [page, *pictures]:
        links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]*)""", text)
        assert all(link.startswith(("#", "data:")) for link in links)


def test_nothing_on_disk_names_a_path_of_the_machine(finished):
    page = page_of(finished.result)
    texts = [picture.encode() for picture in figures(page)]
    texts += [file.read_bytes() for file in finished.result.folder.rglob("*.*")]
    for place in (finished.result.folder, ROOT, Path.home(), Path(sys.prefix)):
        assert not any(str(place).encode() in text for text in texts)


@pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="opening the page takes Debian's chromium, which is not installed",
)
def test_browser_draws_every_figure(finished, tmp_path):
    copy = tmp_path / "report.html"
    page = page_of(finished.result)
    assert page.count("</body>") == 1
    copy.write_text(page.replace("</body>", LOOK))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    browser = subprocess.run(
        [*CHROMIUM.split(), profile, "--dump-dom", copy.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search('data-seen="([^"]*)"', browser.stdout)
    assert found, browser.stderr
    seen = json.loads(html.unescape(found[1]))
    assert [figure["section"] for figure in seen] == names(SECTIONS)
    for figure in seen:
        assert figure["drawn"], figure
        assert figure["ink"] > 0.02, figure
        assert figure["findings"], figure
        assert all(len(text) > 40 for text in figure["findings"]), figure


def test_same_configuration_reads_the_run_again(finished, monkeypatch):
    def fail(*_):
        raise AssertionError("a finished portrait is measured again")

    monkeypatch.setattr(
        _run, "SECTIONS", tuple(section._replace(read=fail) for section in SECTIONS)
    )
    monkeypatch.setattr(_run, "overview", lambda *_: None)  # as the page draws it
    folder = finished.result.folder
    before, trajectory = snapshot(folder), snapshot(folder / "trajectory")
    again = portrait(finished.config, progress=False)
    assert again.rows == finished.result.rows
    assert (again.last_step, again.diverged_at) == (50, None)
    assert snapshot(folder / "trajectory") == trajectory
    contents = lambda files: {path: content for path, (_, content) in files.items()}
    assert contents(snapshot(folder)) == contents(before)


def test_another_configuration_is_refused(finished):
    before = snapshot(finished.result.folder)
    other = Config(batch_size=25, num_steps=50, seed=3, out=finished.config.out)
    with pytest.raises(ValueError, match="seed 0 there, 3 here") as caught:
        portrait(other, progress=False)
    assert "batch_size 50 there, 25 here" in str(caught.value)
    assert snapshot(finished.result.folder) == before


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    for out in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="no portrait"):
            portrait(Config(num_steps=50, out=out), progress=False)
    assert snapshot(tmp_path) == before


def cut(history, num_records, *, scale):
    """A run that diverged after some records, the last of them overflowing."""
    keep = lambda a: np.array(a[:num_records])
    records = jax.tree.map(keep, history.records)
    params = history.state.initial_params
    if scale > 1:
        params = jax.tree.map(lambda a: scale * a, history.state.params)
        for leaf in jax.tree.leaves(records):
            if leaf.dtype.kind == "f":
                leaf[-1] = np.nan
    trace = jax.tree.map(keep, history.trace)
    trace["loss"][-1] = trace["step_length"][-1] = np.nan
    return history._replace(
        state=history.state._replace(params=params),
        steps=history.steps[:num_records],
        records=records,
        trace=trace,
        diverged_at=int(history.steps[num_records - 1]),
    )


@pytest.mark.parametrize(("num_records", "scale"), [(1, 1), (4, 1e30)])
def test_every_section_survives_divergence(
    finished, num_records, scale, monkeypatch, tmp_path
):
    history = cut(finished.history, num_records, scale=scale)
    monkeypatch.setattr(_run, "make_plan", lambda config: finished.plan)
    monkeypatch.setattr(_run, "_train", lambda *_: history)
    monkeypatch.setattr(_run, "overview", lambda *_: None)
    config = Config(batch_size=50, num_steps=50, out=tmp_path / "diverged")
    result = portrait(config, progress=False)
    assert result.diverged_at == num_records - 1
    page = page_of(result)
    assert f"the loss or the update of step {num_records - 1} is not finite" in page
    assert len(figures(page)) == len(SECTIONS)
    assert not re.search("class='mark (agrees|disagrees)'", page)
    lacking = re.findall("nothing to judge here: (.*?) is not finite", page)
    assert lacking == [
        "batch sharpness",
        "the noise scale",
        *["the spectrum of the weights"] * (scale > 1),
        "the kernel",
        "NC1",
    ]
    assert f"The path has {num_records - 1} points: too few" in page
    assert not re.search(r"\b(nan|inf)\b", re.sub("base64,[^']*", "", page))


@pytest.fixture(scope="module")
def diverged(small_data, tmp_path_factory):
    """Regression at a learning rate that nothing survives; no neural-tangents."""
    out = tmp_path_factory.mktemp("portraits") / "single-index"
    config = Config(data="single-index", learning_rate=100.0, num_steps=50, out=out)

    def missing(*_, **__):
        raise ImportError("neural-tangents is missing:\n    pip install it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "infinite_width", missing)
        patch.setattr(_run, "overview", lambda *_: None)
        return portrait(config, progress=False)


def test_diverged_run_writes_its_report(diverged):
    step = diverged.diverged_at
    assert step is not None
    assert 0 < step < 50
    assert diverged.last_step <= step
    page = page_of(diverged)
    assert f"the loss or the update of step {step} is not finite" in page
    assert f"up to step {diverged.last_step}." in page
    assert f"update of step {step} is not" in script.report(diverged)
    metrics = (diverged.folder / "metrics.jsonl").read_text().splitlines()
    assert [strict(line)["step"] for line in metrics] == list(
        range(diverged.last_step + 1)
    )


def test_regression_leaves_out_what_needs_classes(diverged):
    assert list(diverged.numbers) == [
        "training",
        "sharpness",
        "spectrum",
        "noise",
        "tails",
        "weights",
        "kernel",
        "kernel_evolution",
        "kernel_spectrum",
        "landscape",
        "path",
        "lifetimes",
    ]
    assert "relative error" in diverged.rows[0].quantity
    assert len(figures(page_of(diverged))) == 12


def test_without_infinite_width_the_page_says_why(diverged):
    said = "no infinite-width kernel to compare with: neural-tangents is missing: pip"
    assert said in page_of(diverged)
    assert "infinite NTK" not in page_of(diverged)


def test_kernels_are_held_against_the_network_and_its_limit(finished):
    plan, history, numbers = finished.plan, finished.history, finished.result.numbers
    found = numbers["kernel"]
    n = len(plan.x_train)
    both = np.concatenate([plan.x_train, plan.x_test])
    limit = kernels.infinite_width(
        plan.module, both, plan.x_train, batch_size=500, weight_std=1.0, bias_std=0.0
    )
    train, test = np.split(np.asarray(limit.ntk, float), [n])
    targets = np.eye(10)[np.asarray(plan.y_train)]
    ridge = found["infinite"]["ntk"]["ridge_over_trace"] * np.trace(train)
    dual = np.linalg.solve(train + ridge * np.eye(n), targets - targets.mean(axis=0))
    outputs = test @ dual + targets.mean(axis=0)
    error = np.mean(np.argmax(outputs, axis=1) != np.asarray(plan.y_test))
    assert found["infinite"]["ntk"]["error"] == pytest.approx(error)
    initial, network = found["initial"]["error"], found["network"]["error"]
    assert found["gain"]["value"] == pytest.approx(initial - network, abs=1e-6)
    assert found["infinite"]["all"]
    assert "At infinite width the tangent kernel" in page_of(finished.result)
    start = numbers["kernel_spectrum"]["start"]
    first = kernels.empirical_ntk(
        plan.apply_fn, history.state.initial_params, plan.x_train
    )
    eigenvalues = np.linalg.eigvalsh(np.asarray(first, float) / 10)
    ridge = 1e-3 * eigenvalues.sum()
    dimension = np.sum(eigenvalues / (eigenvalues + ridge))
    assert start["effective_dimension"] == pytest.approx(dimension, rel=1e-4)
    assert start["eigenvalues"][0] == pytest.approx(eigenvalues[-1], rel=1e-5)


def test_interrupted_run_continues(monkeypatch, tmp_path):
    write = _store.write

    def interrupt(store, chunk):
        if chunk.step == 20:
            raise KeyboardInterrupt
        write(store, chunk)

    monkeypatch.setattr(_run, "SECTIONS", (TRAINING, SHARPNESS))
    monkeypatch.setattr(_store, "write", interrupt)
    config = Config(optimizer="adam", num_steps=50, out=tmp_path / "interrupted")
    result = portrait(config, progress=False)
    assert (result.report, result.last_step) == (None, 19)
    assert "step 19. The same command continues" in script.report(result)
    first = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert len(first) == 20
    assert not list(result.folder.glob("report*"))

    monkeypatch.setattr(_store, "write", write)
    result = portrait(config, progress=False)
    assert result.last_step == 50
    assert (result.folder / "metrics.jsonl").read_text().splitlines()[:20] == first
    assert f"Report: {result.folder / 'report.html'}" in script.report(result)
    assert "threshold 38/η = 1.27e+04" in script.report(result)
    assert len(figures(page_of(result))) == 2
