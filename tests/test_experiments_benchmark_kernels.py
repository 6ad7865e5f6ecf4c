"""The kernel benchmark without its peers: models, worker, limits, arithmetic."""

import io
import itertools
import json
import math
import sys

import jax
import numpy as np
import pytest
from matplotlib import pyplot

from experiments.benchmarks import (
    kernels_cases,
    kernels_jax,
    kernels_peers,
    kernels_report,
    kernels_worker,
)
from experiments.benchmarks.kernels_report import Measurement


def _conv(x, weight, bias, stride):
    """A convolution by its definition, padded as "SAME" is."""
    (n, *sizes, _), (*window, _, features) = x.shape, weight.shape
    out = [-(-size // stride) for size in sizes]
    total = [max((o - 1) * stride + 3 - s, 0) for o, s in zip(out, sizes, strict=True)]
    x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    y = np.zeros((n, *out, features))
    for i, j in itertools.product(*map(range, out)):
        seen = x[:, i * stride :, j * stride :][:, : window[0], : window[1]]
        y[:, i, j] = np.einsum("nhwc,hwcf->nf", seen, weight) + bias
    return y


def _softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


NUMPY = kernels_cases.Ops(
    relu=lambda x: np.maximum(x, 0),
    gelu=lambda x: (
        x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    ),
    softmax=_softmax,
    rsqrt=lambda x: x**-0.5,
    einsum=np.einsum,
    images=lambda x: x,
    conv=_conv,
    pool=lambda x: x.mean((1, 2)),
)


@pytest.mark.parametrize("name", kernels_cases.NAMES)
def test_models_are_the_same_function_in_numpy(name):
    case = kernels_cases.make(name, small=True)
    outputs = case.model(kernels_jax.OPS, case.params, case.x)
    double = kernels_cases.map_params(lambda a: a.astype(np.float64), case.params)
    expected = case.model(NUMPY, double, case.x.astype(np.float64))
    assert expected.shape[0] == case.x.shape[0]
    np.testing.assert_allclose(outputs, expected, rtol=2e-5, atol=2e-6)


def test_cases_in_full_are_those_of_the_targets():
    case = kernels_cases.make("MLP 784")
    shapes = [a.shape for a in kernels_cases.leaves(case.params)]
    widths = (784, 512, 512, 512, 10)
    assert shapes[0::2] == list(itertools.pairwise(widths))
    assert case.x.shape == (64, 784)
    assert set(kernels_cases.MLPS) < set(kernels_cases.NAMES)


def test_a_worker_answers_with_the_kernel_and_times(tmp_path):
    case = kernels_cases.make("MLP 784", small=True)
    requests, n = [], len(case.x)
    for name in kernels_jax.OURS:
        common = {"case": "MLP 784", "implementation": name, "small": True}
        file = str(tmp_path / f"{name}.npy")
        requests += [
            {"do": "first", "file": file, **common},
            {"do": "time", "repetitions": 3, "seconds": 60.0, **common},
        ]
    requests.append({"do": "forget"})
    replies = io.StringIO()
    lines = [json.dumps(request) for request in requests]
    kernels_worker.serve(kernels_jax.OURS, lines, replies)
    counts = [
        len(json.loads(line).get("seconds", ()))
        for line in replies.getvalue().splitlines()
    ]
    assert counts == [1, 3, 1, 3, 0]
    model = lambda params: case.model(kernels_jax.OPS, params, case.x)
    jacobian = np.concatenate(
        [
            np.asarray(leaf).reshape(n, 3, -1)
            for leaf in jax.tree.leaves(jax.jacrev(model)(case.params))
        ],
        axis=-1,
    )
    expected = np.einsum("ikp,jlp->ijkl", jacobian, jacobian)
    for name in kernels_jax.OURS:
        kernel = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "limits", "reason"),
    [
        (("-c", "import time; print('{}', flush=True); time.sleep(60)"), (1, 9), "1 s"),
        (("-c", "raise SystemExit('too little')"), (60, 9), "ended: too little"),
    ],
)
def test_a_process_past_its_limits_is_ended(tmp_path, words, limits, reason):
    class Echo(kernels_peers.Peer):
        def command(self):
            return [sys.executable, *words]

    peer = Echo("ours", tmp_path, 1, tmp_path / "log")
    with pytest.raises(kernels_peers.LimitError, match=reason):
        peer.ask({"do": "forget"}, kernels_peers.Limits(*limits))
    assert peer.process is None


def measured(case, environment, implementation, *seconds, first=1.0):
    return Measurement(
        case, environment, implementation, "", first, first, 0.0, seconds, seconds
    )


def measurements():
    found = []
    for case, times in (("MLP 784", (2.0, 8.0)), ("CNN 64", (0.5, 4.0))):
        found += [
            measured(case, "ours", "auto", 1.0, 2.0, 4.0),
            measured(case, "ours", "Jacobian", 100.0, 220.0),
            measured(case, "NT", "structured", *(times[0] * s for s in (1, 2, 4))),
            measured(case, "NT", "Jacobian", *(times[1] * s for s in (1, 2, 4))),
            Measurement(case, "torch", "Jacobian", "over 8 GB"),
        ]
    return found


def test_ratios_are_taken_within_rounds():
    auto = measured("c", "ours", "auto", 1.0, 2.0, 4.0)
    other = measured("c", "NT", "structured", 3.0, 2.0, 8.0)
    assert kernels_report.ratio(other, auto) == (1.5, 2.0, 2.5)
    short = measured("c", "NT", "Jacobian", 5.0)
    assert kernels_report.ratio(short, auto).median == 5.0
    assert kernels_report.geometric_mean([1.0, 8.0]) == pytest.approx(math.sqrt(8))


def test_targets_say_what_the_numbers_say():
    wide = [
        {
            "num_examples": n, "batch_size": 10, "seconds": seconds,
            "cpu_seconds": seconds, "megabytes_before": 100.0,
            "megabytes_after": 100.0 + memory, "trace": 1.0,
        }
        for n, seconds, memory in ((1000, 5.0, 50.0), (2000, 19.0, 80.0))
    ]  # fmt: skip
    found = kernels_report.targets(measurements(), wide)
    # The best of NT: 2 times ours on one case, half on the other.
    assert [target.met for target in found] == [False, False, True, True, True, True]
    assert "0.50 (CNN 64)" in found[0].measured
    assert found[1].measured == "1.00"
    assert "105.00 (MLP 784)" in found[2].measured
    assert found[5].measured == "30 MB, the kernel by 12 MB"


def test_a_target_that_was_not_measured_everywhere_is_not_met():
    found = measurements()
    jacobian = Measurement("MLP 3072", "ours", "Jacobian", "over 60 s")
    found += [measured("MLP 3072", "ours", "auto", 1.0), jacobian]
    (target,) = [t for t in kernels_report.targets(found, []) if "100" in t.claim]
    assert not target.met
    assert target.measured.endswith("(MLP 784); MLP 3072 not timed: over 60 s")


def test_the_table_the_file_and_the_figure_hold_everything(tmp_path):
    found = measurements()
    table = kernels_report.table(found, [], (1.0, 2.0))
    assert table.count("skipped: over 8 GB") == 2
    assert "NOT met the best of NT takes at least as long" in table
    lines = kernels_report.as_csv(found).splitlines()
    assert len(lines) == 1 + 2 * (3 + 2 + 3 + 3 + 1)
    assert lines[1].startswith("MLP 784,ours,auto,,1.0")
    figure = kernels_report.draw(found)
    heights = sorted(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == [0, 0, 0.5, 2, 4, 8, 105, 105]
    pyplot.close(figure)
