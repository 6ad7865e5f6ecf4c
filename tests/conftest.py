"""Strict JAX everywhere, eight virtual devices, and switches that tests share."""

import atexit
import importlib.metadata
import os
import sys
import tempfile

# Most of the time goes into compiling programs that run once. In the environment
# rather than in the configuration, for the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The newer generator of XLA's CPU code takes twice as long to compile, and from 0.11 on
# it is the only one.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# What one worker has compiled the others need not, nor the processes they start. The
# folder is gone after the run: a later one starts from nothing again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="jaxtheory-compiled-")
    atexit.register(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    """What draws closes: an open figure is seen by every later test of the process."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and (left := pyplot.get_fignums()):
        pyplot.close("all")
        pytest.fail(f"the test left figures {left} of pyplot open: close them")


@pytest.fixture
def user_land():
    """Without the runtime type checks, so that our own error messages are seen."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def eight_devices():
    """A mesh of eight virtual devices with one axis, ``data``."""
    assert jax.device_count() == 8
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((8,), ("data",), axis_types=auto)
