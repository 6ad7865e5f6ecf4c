"""The certificates of the experiment, small: what they are made of, files, command."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import pac_bayes as script
from experiments.pac import page

SMALL = script.Config(
    widths=(4,),
    num_train=200,
    prior_fractions=(0.0, 0.5),
    prior_scales=(0.03, 0.3),
    prior_steps=100,
    posterior_steps=20,
    num_samples=50,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


def test_every_number_is_there_and_every_bound_a_certificate(result):
    assert list(result.found) == ["0", "0.5"]
    for name, one in result.found.items():
        assert one.bound.shape == (2,)
        assert one.certificates.all()
        assert np.all(one.risk < one.bound)
        # The choice among two scales is paid.
        assert np.all(one.kl >= np.log(2))
        assert np.isin(one.scale, SMALL.prior_scales).all()
        assert np.isnan(one.holdout).all() == (name == "0")
    # What has seen half of the data does better on the other half.
    assert result.found["0.5"].bound.mean() < result.found["0"].bound.mean()


def test_forms_begin_with_the_certificate_itself(result):
    for one in result.found.values():
        np.testing.assert_allclose(one.forms[:, 0], one.bound, rtol=1e-9)
        assert np.all(one.forms[:, 0] <= one.forms[:, 2:].min(axis=1) * (1 + 1e-9))


def test_claims_are_those_of_the_numbers(result):
    claims = page.claims(SMALL, result)
    assert len(claims) == 1 + 2 + 3
    values = np.concatenate([one.bound - one.test for one in result.found.values()])
    assert claims[0].measured == np.mean(values < 0)
    gain = result.found["0.5"].holdout - result.found["0.5"].bound
    assert claims[-1].measured == pytest.approx(gain.mean())


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    out = tmp_path / "there"
    monkeypatch.setattr(sys, "argv", ["x", "--num-seeds", "2", "--out", str(out)])
    script.main()
    assert asked[0].num_seeds == 2
    assert "is below a plain hold-out bound" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["found"]["0"]["bound"], result.found["0"].bound)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least 2"),
        (["--prior-fractions", "1.0"], "error: `prior_fractions` must be between 0"),
    ],
)
def test_bad_options_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
