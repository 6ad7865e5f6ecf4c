"""The kernel benchmark in JAX: our implementations, and those of Neural Tangents.

Read by two environments, with the JAX that is pinned here and with the one that the
structured derivatives of Neural Tangents need; what is imported of the packages is
imported where it is used.
"""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernels_cases import Case, Ops


def _conv(x, weight, bias, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, weight, (stride, stride), "SAME", dimension_numbers=numbers
    )
    return y + bias[None, None, None]


OPS = Ops(
    relu=jax.nn.relu,
    gelu=jax.nn.gelu,
    softmax=jax.nn.softmax,
    rsqrt=jax.lax.rsqrt,
    einsum=jnp.einsum,
    images=lambda x: x,
    conv=_conv,
    pool=lambda x: x.mean((1, 2)),
)


def _arguments(case) -> tuple[Any, Any, Any]:
    """The model as ``apply_fn(params, x)``, parameters and inputs on the device."""
    params, x = jax.tree_util.tree_map(jnp.asarray, (case.params, case.x))
    return functools.partial(case.model, OPS), params, x


def ours(case: Case, method: Any) -> Callable[[], Any]:
    """`jaxtheory.kernels.empirical_ntk` by one method."""
    from jaxtheory.kernels import empirical_ntk

    apply_fn, params, x = _arguments(case)
    compute = lambda: empirical_ntk(apply_fn, params, x, outputs="full", method=method)
    return lambda: jax.block_until_ready(compute())


def neural_tangents(case: Case, implementation: int) -> Callable[[], Any]:
    """An implementation of `neural_tangents.empirical_ntk_fn`, by its number."""
    # The one module that needs TensorFlow, and that nothing here calls.
    experimental = types.ModuleType("neural_tangents.experimental")
    experimental.__dict__["empirical_ntk_fn_tf"] = None
    sys.modules[experimental.__name__] = experimental
    import neural_tangents as nt

    apply_fn, params, x = _arguments(case)
    kernel_fn = nt.empirical_ntk_fn(
        apply_fn,
        trace_axes=(),
        vmap_axes=0,
        implementation=nt.NtkImplementation(implementation),
    )
    kernel = jax.jit(lambda x, params: kernel_fn(x, None, params))
    return lambda: jax.block_until_ready(kernel(x, params))


OURS = {
    "auto": functools.partial(ours, method="auto"),
    "Jacobian": functools.partial(ours, method="jacobian"),
}
NEURAL_TANGENTS = {
    "Jacobian": functools.partial(neural_tangents, implementation=1),
    "vector products": functools.partial(neural_tangents, implementation=2),
    "structured": functools.partial(neural_tangents, implementation=3),
}
