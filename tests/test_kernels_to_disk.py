"""Kernels on disk: those in memory, also when the writing was interrupted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from jaxtheory import kernels
from jaxtheory.kernels import _to_disk

pytestmark = pytest.mark.usefixtures("user_land")


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def data(n):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (3, 8)),
        "v": jax.random.normal(keys[1], (8, 2)),
    }
    return params, jax.random.normal(keys[2], (n, 3))


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_writes_the_kernel_in_ragged_blocks(tmp_path, outputs):
    params, x = data(11)
    expected = kernels.empirical_ntk(model, params, x, outputs=outputs)
    tolerance = 1e-5 * float(jnp.abs(expected).max())

    path = tmp_path / "new" / "kernel.npy"
    write = lambda path, *x, **options: kernels.write_empirical_ntk(
        path, model, params, *x, outputs=outputs, batch_size=4, **options
    )
    found = write(path, x, progress=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
    axes = (1, 0) if outputs == "trace" else (1, 0, 3, 2)
    np.testing.assert_array_equal(found, np.transpose(found, axes))
    assert not found.flags.writeable
    assert [file.name for file in path.parent.iterdir()] == ["kernel.npy"]
    np.testing.assert_array_equal(np.load(path), found)

    found = write(tmp_path / "cross.npy", x, x[:5], progress=False)
    np.testing.assert_allclose(found, expected[:, :5], rtol=1e-5, atol=tolerance)


class Killed(Exception):
    """Stands for whatever ends a process."""


def test_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    params, x = data(12)
    path = tmp_path / "kernel.npy"
    whole, calls = _to_disk.empirical_ntk, []

    def counted(*args, **options):
        if not isinstance(args[2], Tracer):
            calls.append(args[2].shape)
            if len(calls) == 5:  # a row of three blocks is done, and one more block
                raise Killed
        return whole(*args, **options)

    monkeypatch.setattr(_to_disk, "empirical_ntk", counted)
    write = lambda params, **options: kernels.write_empirical_ntk(
        path, model, params, x, batch_size=4, progress=False, **options
    )
    with pytest.raises(Killed):
        write(params)
    assert not path.exists()

    with pytest.raises(ValueError, match=r"unfinished file .* differs in data\)"):
        write(jax.tree.map(lambda a: 2 * a, params))
    with pytest.raises(ValueError, match=r"differs in method\)"):
        write(params, method="jacobian")

    other = lambda params, x: jnp.sin(x @ params["w"]) @ params["v"]
    with pytest.raises(ValueError, match=r"differs in the model's values\)"):
        kernels.write_empirical_ntk(path, other, params, x, batch_size=4)

    before = len(calls)
    found = write(params)
    # One to compare, two blocks of the second row, one of the third.
    assert len(calls) - before == 4
    expected = kernels.empirical_ntk(model, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_overwrites_nothing(tmp_path):
    params, x = data(4)
    path = tmp_path / "kernel.npy"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"`path` must be a new file"):
        kernels.write_empirical_ntk(path, model, params, x, batch_size=2)
    assert path.read_text() == "precious"
    with pytest.raises(ValueError, match=r"`path` must end in '.npy'"):
        kernels.write_empirical_ntk(tmp_path / "k", model, params, x, batch_size=2)
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer"):
        kernels.write_empirical_ntk(path, model, params, x, batch_size=0)


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path, monkeypatch):
    params, x = data(4)
    path = tmp_path / "kernel.npy"
    whole = _to_disk.empirical_ntk

    def meddled(*args, **options):
        if not isinstance(args[2], Tracer):  # not the look at shapes, before it begins
            path.write_text("precious")
        return whole(*args, **options)

    monkeypatch.setattr(_to_disk, "empirical_ntk", meddled)
    with pytest.raises(ValueError, match="appeared while the kernel was written"):
        kernels.write_empirical_ntk(
            path, model, params, x, batch_size=2, progress=False
        )
    assert path.read_text() == "precious"
    kernel = np.load(path.with_name("kernel.npy.partial"))
    assert np.allclose(kernel, whole(model, params, x), rtol=1e-5)


def test_broken_partial_files_are_left_alone(tmp_path):
    params, x = data(4)
    path = tmp_path / "kernel.npy"
    partial, ledger = (tmp_path / f"kernel.npy.partial{end}" for end in ("", ".json"))
    two: Any = np.int64(2)
    write = lambda: kernels.write_empirical_ntk(
        path, model, params, x, batch_size=two, progress=False
    )
    partial.write_text("precious")
    with pytest.raises(ValueError, match=r"`path` has .* ledger is missing"):
        write()
    for text in ("{half", "{}", "[]"):
        ledger.write_text(text)
        with pytest.raises(ValueError, match=r"`path` has .* ledger cannot be read"):
            write()
    assert partial.read_text() == "precious"

    partial.unlink()
    ledger.unlink()
    expected = kernels.empirical_ntk(model, params, x)
    np.testing.assert_allclose(write(), expected, rtol=1e-5)
