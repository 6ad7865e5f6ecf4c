"""The dynamics benchmark, rehearsed: both sides agree, and ratios are what they say."""

import importlib
import math

import numpy as np
import pytest

from experiments.benchmarks import dynamics, dynamics_cases, dynamics_jax
from experiments.benchmarks import dynamics_peers as peers
from experiments.benchmarks.kernels_report import Measurement


@pytest.mark.parametrize(
    ("name", "own", "other"),
    [
        ("tree 30", dynamics_jax.spanning_tree, peers.scipy_tree),
        ("Gram 20 x 30", dynamics_jax.distances, peers.blas),
    ],
)
def test_both_sides_agree(name, own, other):
    case = dynamics_cases.make(name)
    np.testing.assert_allclose(own(case)(), other(case)(), rtol=1e-5)
    points = case.points.astype(float)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    if name.startswith("Gram"):
        np.testing.assert_allclose(own(case)(), distances.max(), rtol=1e-5)
    else:
        np.testing.assert_allclose(case.distances, distances, atol=1e-5)


def test_a_population_is_the_runs_one_after_another():
    case = dynamics_cases.make("population 3 x 8", small=True)
    together = dynamics_jax.population(case)()
    alone = dynamics_jax.one_after_another(case)()
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert abs(together - math.log(10)) < 1  # four steps from random weights


def test_a_sketch_takes_four_kilobytes():
    case = dynamics_cases.make("recording 3", small=True)
    found = dynamics_jax.stored_bytes(case)()
    assert 4096 <= found < 4096 + 200


def test_what_is_promised_is_measured_and_has_a_peer():
    for kind, environments in dynamics.TIMED.items():
        assert any(name.startswith(kind) for name in dynamics_cases.NAMES)
        for environment, ways in environments.items():
            known = dynamics_jax.OURS if environment == "ours" else peers.PEERS
            assert set(ways) <= set(known)
    for kind, way in dynamics.PROMISED:
        assert any(way in ways for ways in dynamics.TIMED[kind].values())
    importlib.import_module(dynamics.Peer.module)


def test_ratios_are_of_turns_in_a_round():
    make = lambda *args, seconds: Measurement("tree 5", *args, seconds=seconds)
    lines = dynamics.report(
        [
            make("ours", "spanning tree", seconds=(1.0, 2.0, 1.0)),
            make("numpy", "SciPy", seconds=(30.0, 30.0, 30.0)),
        ]
    )
    assert "30.00" in lines[2]
    assert lines[2].endswith("promised 20: met")


def test_another_result_ends_the_benchmark():
    dynamics.check("tree 5", "SciPy", 2.0, 2.00001)
    with pytest.raises(RuntimeError, match=r"tree 5: SciPy gives 2\.1, ours 2\.0"):
        dynamics.check("tree 5", "SciPy", 2.1, 2.0)
