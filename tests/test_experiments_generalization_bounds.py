"""The zoo, small: its ledger and how it resumes, what is said of it, the command."""

import csv
import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import generalization_bounds as script
from experiments.benchmarks import zoo as benchmark
from experiments.zoo import design, ledger, networks, page, ranking
from jaxtheory import bounds
from jaxtheory.dynamics import topology

SMALL = script.Config(
    tasks=("mixture",),
    label_noises=(0.0, 0.5),
    optimizers=("adam",),
    rate_factors=(4.0, 8.0),
    batch_sizes=(30,),
    widths=(20,),
    decay_factors=(0.0, 1.0),
    num_seeds=2,
    num_train=60,
    num_test=500,
    num_validation=50,
    stop_loss=0.1,
    max_steps=400,
    num_path_steps=45,
    sketch_dim=16,
    num_resamples=20,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def light(network, params, start, path, x, y, key):
    """Some of the measures of stacked networks: all take a minute to compile."""
    del key

    def one(params, start, path):
        losses = networks.cross_entropy(network.apply_fn(params, x), y)
        norms = bounds.norm_measures(
            network.apply_fn, params, x, y, initial_params=start
        )
        length = jnp.sum(path[1])
        tree = topology.minimum_spanning_tree(topology.pairwise_distances(path[0]))
        sketched = topology.path_length(path[0])
        return norms | {
            "loss": jnp.mean(losses),
            "pac_bayes_flatness": jnp.sqrt(norms["fro_dist"]),
            "path_length": length,
            "e_1_over_path_length": jnp.sum(tree.lengths) / sketched,
            "num_nonfinite": jnp.zeros(()),
        }

    return jax.jit(jax.vmap(one))(params, start, path)


@pytest.fixture(scope="module")
def result(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "measure", light)
        yield script.run(dataclasses.replace(SMALL, out=out))


def test_every_network_is_measured_by_the_whole_bundle():
    network = networks.make_network(20, 10)
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    x, y = like(30, 64), jax.ShapeDtypeStruct((30,), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.eval_shape(
        lambda keys, x: jax.vmap(network.model.init, (0, None))(keys, x), keys, x
    )
    path = like(3, 45, 16), like(3, 44)
    measure = functools.partial(networks.measure, network)
    found = jax.eval_shape(measure, params, params, path, x, y, jax.random.key(0))
    assert len(found) > 80
    assert {value.shape for value in found.values()} == {(3,)}
    assert {"nc3", "e_1", "sharpness", "ntk_complexity"} <= {*found}


def test_the_design_is_a_full_factorial_and_large_enough():
    config = script.Config()
    cells = design.all_cells(config)
    assert len({*cells}) == len(cells)
    assert len(cells) * config.num_seeds >= 240
    groups = design.all_groups(config)
    assert sorted(i for group in groups for i in group.cells) == [*range(len(cells))]
    assert len({group.name for group in groups}) == len(groups)
    quick = script.shortened(dataclasses.replace(config, quick=True))
    assert 4 <= len(design.all_cells(quick)) < len(cells)
    assert {*design.FACTORS} == {*design.KINDS}
    assert design.Cell("digits", 0, "sgd", 4.0, 15, 32, 1.0).learning_rate == 0.02


def test_networks_stop_at_the_training_loss_and_others_are_listed(result, out):
    rows = ledger.read_rows(out / "networks.csv")
    assert len(rows) == 16 == result.gap.size
    for row in rows:
        network = int(row["cell"]), int(row["seed"])
        assert (row["reached"] == 1) == (row["train loss"] <= 0.1)
        assert (network in result.excluded) == (row["reached"] == 0)
        assert row["num_steps"] <= 400
        assert row["gap"] == pytest.approx(row["test error"] - row["train error"])
        parts = 50 * row["validation error"] + 450 * row["error beside validation"]
        assert row["test error"] == pytest.approx(parts / 500, abs=1e-6)
        assert row["loss"] == pytest.approx(row["train loss"], rel=1e-4)
        assert row["e_1_over_path_length"] <= 1.001
    for cell, seed in result.excluded:
        assert all(np.isnan(v[cell, seed]) for v in result.rows.values())
    assert np.all(np.isfinite(result.gap) | np.isnan(result.gap))


def test_noise_is_nested_and_the_same_share_of_labels():
    make = lambda noise: networks.make_data(SMALL, "mixture", noise, jax.random.key(0))
    clean, some, all_random = (np.asarray(make(noise).y) for noise in (0.0, 0.5, 1.0))
    assert 0.3 < np.mean(clean != some) < 0.6
    changed = clean != some
    np.testing.assert_array_equal(some[changed], all_random[changed])
    assert np.mean(clean == all_random) < 0.35


def test_stopped_and_started_again_it_ends_with_the_same_ledger(
    result, out, monkeypatch
):
    before = (out / "networks.csv").read_bytes()
    files = sorted((out / "groups").glob("*.csv"))
    assert len(files) == 2
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    (out / "groups" / "left.part").write_text("half a gro")
    trained = []
    run_group = networks.run_group

    def watched(config, group, *args):
        trained.append(group.number)
        return run_group(config, group, *args)

    monkeypatch.setattr(networks, "run_group", watched)
    config = dataclasses.replace(SMALL, out=out)
    rows = script.population(config)
    assert trained == [1]
    assert files[0].stat().st_mtime_ns == kept
    ledger.write_rows(out / "again.csv", rows)
    assert (out / "again.csv").read_bytes() == before
    other = dataclasses.replace(config, stop_loss=0.2)
    with pytest.raises(ValueError, match="networks of another stop_loss"):
        script.population(other)


def test_numbers_survive_the_ledger(tmp_path):
    rows = [{"task": "a", "cell": 3, "x": 0.1 + 0.2, "y": np.inf, "z": np.nan}]
    ledger.write_rows(tmp_path / "rows.csv", rows)
    (found,) = ledger.read_rows(tmp_path / "rows.csv")
    assert found["x"] == 0.1 + 0.2
    assert found["y"] == np.inf
    assert np.isnan(found["z"])
    assert "3," in (tmp_path / "rows.csv").read_text()


def test_variance_is_added_up_by_source():
    levels = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1)
    factors = dict(zip(("task", "width", "learning rate"), levels, strict=True))
    values = levels[0] + 0.5 * levels[1] + 0.5 * levels[0] * levels[2]
    noise = 1e-3 * np.random.default_rng(0).standard_normal((8, 3))
    shares = dict(
        zip(
            ranking.SOURCES,
            ranking.by_source(values[:, None] + noise, factors),
            strict=True,
        )
    )
    squares = {
        "data": 1.25**2 / 4,
        "architecture": 0.5**2 / 4,
        "hyperparameters": 0.25**2 / 4,
        "interactions": 0.25**2 / 4 / 4 * 1,
    }
    squares["interactions"] = np.var(values) - sum(list(squares.values())[:3])
    for name, value in squares.items():
        assert shares[name] == pytest.approx(value / np.var(values), abs=1e-3)
    assert shares["algorithm"] == 0
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_regrets_are_those_of_the_cells_that_are_chosen():
    test = np.array([[0.3, 0.3], [0.1, 0.1], [0.2, 0.2], [0.5, 0.5]])
    errors = ranking.Errors(test, test, np.array([[1.0, 1], [2, 2], [0, 0], [3, 3]]))
    data = {"one": np.array([True, True, True, False])}
    measures = {"sharpness": np.array([[0.0, 2], [5, 5], [6, 6], [-9, -9]])}
    measures["margin"] = -measures["sharpness"]
    found = ranking.choose(measures, errors, data)
    assert found.regret["sharpness"] == pytest.approx([0.2])
    assert found.regret["margin"] == pytest.approx([0.2])
    assert found.validation == pytest.approx([0.1])
    assert found.random == pytest.approx([0.1])


def test_claims_are_those_of_the_numbers(result):
    claims = {
        claim.claim.split(":")[0].split(" ")[0]: claim for claim in page.claims(result)
    }
    ratio = np.nanmean(result.rows["e_1_over_path_length"])
    assert claims["E_1"].measured == pytest.approx(ratio)
    e = result.ranking.evaluation
    row = e.measures.index("log_prod_of_spec_over_margin")
    assert claims["norms"].measured == e.tau[row]
    varies = ~np.isnan(e.tau + e.worst_sign_error)
    assert claims["every"].measured == np.min(e.worst_sign_error[varies])
    choice = result.ranking.choice
    gain = np.mean(choice.random - choice.regret["pac_bayes_flatness"])
    # The last that begins so, of the choice.
    assert claims["pac_bayes_flatness"].measured == pytest.approx(gain)


def test_command_line_writes_ledger_numbers_and_figure(
    result, out, monkeypatch, tmp_path, capsys
):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    flags = "--tasks mixture --label-noises 0 0.5 --widths 8 --num-seeds 2"
    folder = tmp_path / "there"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(folder)])
    script.main()
    assert asked[0].widths == (8,)
    assert asked[0].label_noises == (0.0, 0.5)
    said = capsys.readouterr().out
    assert "8 cells x 2 seeds = 16 networks" in said
    assert "noise ceiling" in said
    assert "regret in points of test error" in said
    held = json.loads((folder / "result.json").read_text())
    np.testing.assert_allclose(np.array(held["gap"], float), result.gap)
    assert np.std(imread(folder / "figure.png")[..., 0]) > 0.05
    with (out / "mbe_eval.csv").open() as stream:
        header = next(csv.reader(stream))
    assert {"config_id", "hp.learning rate", "complexity.loss", "gen.gap"} <= {*header}


def test_a_design_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num-seeds", "1"])
    with pytest.raises(SystemExit, match="error: there must be at least four cells"):
        script.main()


def test_the_benchmark_says_whether_what_was_promised_is_met():
    times = [np.array([a, a, a]) for a in (0.01, 0.02, 0.2)]
    result = benchmark.Result(
        *times, dict.fromkeys(("stacked", "bundle", "separate"), 1.0), 83, 29
    )
    lines = benchmark.report(result).splitlines()
    assert lines[-2] == "  separate / stacked 20.0 [20.0, 20.0]; promised 10: met"
    assert lines[-3].endswith("promised 5: met")
