"""neural-tangents on today's JAX: the one place that imports it.

Its last release (0.6.5) was written for jax<0.5: it imports names that have moved or
gone, and TensorFlow for an experimental part. The names are lent to it while it is
imported, and taken back; TensorFlow is never needed.
"""

import contextlib
import functools
import importlib
import sys
import types
from typing import Any
from unittest import mock

import jax.core
import jax.extend.core
import jax.interpreters.ad

INSTALL = "pip install --no-deps neural-tangents==0.6.5 frozendict"

# Imported by name from `jax.core` there.
_MOVED = (
    *("AbstractValue", "ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Primitive"),
    *("ShapedArray", "Value", "Var"),
)
_EXPERIMENTAL = "neural_tangents.experimental"


@functools.cache
def neural_tangents() -> Any:
    """Import neural-tangents, and leave `jax` and `sys.modules` as they were found.

    Its infinite-width layers (``stax``) and closed-form predictions work; its
    structured empirical kernels (implementation 3, and the automatic choice) do not.

    Returns:
        The module ``neural_tangents``, the same object at each call.

    Raises:
        ImportError: It is not installed, or not in this version.
    """
    try:
        with _as_before_jax_05():
            return importlib.import_module("neural_tangents")
    except ImportError as error:
        raise ImportError(
            "Infinite-width kernels need neural-tangents 0.6.5, which could not be "
            f"imported ({error}). Install it without its dependencies, of which "
            f"TensorFlow is one that is not needed:\n    {INSTALL}"
        ) from error


@contextlib.contextmanager
def _as_before_jax_05():
    """The names of an older `jax` that are missing, for as long as this is entered."""
    experimental = types.ModuleType(_EXPERIMENTAL)
    experimental.__dict__["empirical_ntk_fn_tf"] = None
    util = types.ModuleType("jax.util")
    util.__dict__.update(safe_map=_safe_map, safe_zip=_safe_zip)
    lent = {_EXPERIMENTAL: experimental, "jax.util": util}
    with contextlib.ExitStack() as stack:
        for name, module in lent.items():
            if name not in sys.modules:
                sys.modules[name] = module
                stack.callback(sys.modules.pop, name, None)
        for owner, name, value in _missing():
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        yield


def _missing():
    """What is not there any more: the owner, its name, what stands for it."""
    for name in _MOVED:
        if not _has(jax.core, name):
            # A name alone will do where the type is gone too: it annotates.
            yield jax.core, name, getattr(jax.extend.core, name, object)
    # A key of a table of rules, for a primitive that no program has any more.
    if not _has(jax.interpreters.ad, "zeros_like_p"):
        yield jax.interpreters.ad, "zeros_like_p", object()


def _has(module, name):
    """Whether a module has a name; one that it only deprecates counts as there."""
    return name in vars(module) or name in dir(module)


def _safe_zip(*sequences):
    """`zip` of sequences of one length, as a list."""
    return list(zip(*sequences, strict=True))


def _safe_map(function, *sequences):
    """`map` over sequences of one length, as a list."""
    return [function(*items) for items in _safe_zip(*sequences)]
