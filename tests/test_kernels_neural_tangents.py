"""The compatibility layer: it gives back what it lent, and says how to install."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.kernels import _neural_tangents as module

PROGRAM = """
import sys
import jax.core, jax.extend.core, jax.interpreters.ad
from jaxtheory.kernels._neural_tangents import neural_tangents
assert "neural_tangents" not in sys.modules
owners = jax.core, jax.extend.core, jax.interpreters.ad
names = [dict(vars(owner)) for owner in owners]
modules = set(sys.modules)
nt = neural_tangents()
assert [dict(vars(owner)) for owner in owners] == names
assert not {"jax.util", "tensorflow", "tf2jax"} & (set(sys.modules) - modules)
assert nt is neural_tangents()
print(nt.__version__)
"""


def test_jax_is_left_as_it_was_found():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "0.6.5"


def test_it_computes():
    stax = module.neural_tangents().stax
    _, _, kernel = stax.serial(stax.Dense(1, 2**0.5), stax.Relu(), stax.Dense(1))
    x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(jnp.diag(kernel(x, None, "ntk")), [1, 4], rtol=1e-3)


def test_without_it_an_error_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    module.neural_tangents.cache_clear()
    try:
        with pytest.raises(ImportError) as caught:
            module.neural_tangents()
        command = "pip install --no-deps neural-tangents==0.6.5 frozendict"
        assert command in str(caught.value)
    finally:
        module.neural_tangents.cache_clear()
