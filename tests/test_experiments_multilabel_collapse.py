"""Collapse with several tags, small: the closed form, orderings, the command line."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import multilabel_collapse as script
from experiments.collapse import multilabel_page, sums, tags

SMALL = script.Config(
    single_examples=10,
    pair_examples=4,
    test_share=1.0,  # the same shapes: one trace of the statistics of both sets
    widths=(48,),
    num_epochs=60,
    batch_size=40,
    num_records=2,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "FREE", sums.FREE[:1])
        return script.run(SMALL)


def test_solver_finds_the_closed_form(result):
    (solved,) = result.solved
    np.testing.assert_allclose(solved.margins, [5.08277, 4.51552], atol=5e-6)
    np.testing.assert_allclose(solved.scales, [1, 0.88840], atol=5e-6)
    assert solved.margin_error < 1e-6
    assert solved.scale_error < 1e-6
    assert solved.residual < 1e-6


def test_networks_collapse_towards_sums(result):
    assert result.steps.tolist() == [0, 210, 420]
    for name in tags.STATISTICS:
        assert result.train[name].shape == (2, 3)
        assert np.all(result.train[name][:, -1] < result.train[name][:, 0])
    # What the classifier does not see is in no sum of what it does.
    assert np.all(result.train["seen"][:, -1] < result.train["residual"][:, -1])
    assert np.all(result.error[:, -1] < 0.02)
    assert np.all(result.test_error[:, -1] < 0.5)
    np.testing.assert_allclose(result.margins, result.predicted_margins, rtol=0.5)
    assert np.all((result.predicted_scale > 0.5) & (result.predicted_scale < 1))


def test_loss_is_the_sum_over_tags():
    draw = np.random.default_rng(0)
    outputs, members = draw.normal(size=(4, 5)), draw.integers(0, 2, (4, 5))
    found = jax.jit(sums.pick_all_label)(outputs, members)
    for z, row, value in zip(outputs, members, np.asarray(found), strict=True):
        expected = sum(np.log(np.exp(z).sum()) - z[k] for k in np.flatnonzero(row))
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_images_show_their_tags():
    train, test = tags.make_images(SMALL, jax.random.key(0))
    images, members = (np.asarray(values) for values in train)
    assert images.shape == (280, 2, 64)
    sizes = members.sum(axis=1)
    blank = np.ptp(images, axis=2) == 0
    np.testing.assert_array_equal(blank.sum(axis=1), 2 - sizes)
    assert blank[:, 0].any()
    assert blank[:, 1].any()
    singles, pairs = members[sizes == 1], members[sizes == 2]
    np.testing.assert_array_equal(singles.sum(axis=0), 10)
    np.testing.assert_array_equal(
        pairs.T @ pairs, 4 * np.ones((10, 10)) + 32 * np.eye(10)
    )
    fewer = tags.make_images(
        dataclasses.replace(SMALL, test_share=0.5), jax.random.key(0)
    )
    assert len(test[0]) == 280
    assert len(fewer[1][0]) == 50 + 45 * 2


def test_claims_follow_from_the_numbers(result):
    claims = multilabel_page.claims(result)
    assert [claim.verdict for claim in claims[:3]] == ["holds"] * 3
    residual = result.train["residual"]
    fall = np.log10(residual[:, -1] / residual[:, 0]).mean()
    (claim,) = [c for c in claims if "not in the sum, log10" in c.claim]
    np.testing.assert_allclose(claim.measured, fall, rtol=1e-6)
    off = result._replace(predicted_scale=result.scale[:, -1] / 2)
    assert multilabel_page.claims(off)[-2].verdict == "fails"


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    flags = ["--pair-examples", "4", "--num-seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["x", *flags, "--out", str(out)])
    script.main()
    assert asked[0].pair_examples == 4
    assert "5.08277 4.51552" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["scale"], result.scale)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize("flag", ["--num-seeds", "--num-records"])
def test_what_cannot_be_run_is_refused(flag, monkeypatch):
    value = {"--num-seeds": "1", "--num-records": "7"}[flag]
    monkeypatch.setattr(sys, "argv", ["x", flag, value])
    with pytest.raises(SystemExit, match="error: `num_seeds` must be at least 2"):
        script.main()
