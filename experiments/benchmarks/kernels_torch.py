"""The kernel benchmark in PyTorch: the two recipes for kernels with `torch.func`.

Per example as their authors advise: Jacobians by `jacrev` under `vmap` and contracted
parameter by parameter, or for each pair of examples the Jacobian of one, as a product,
with that of the other. Jacobians are formed once, as the kernel is symmetric.
"""

import math
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.kernels_cases import Case, Ops, leaves, map_params

functional = torch.nn.functional


def _conv(x, weight, bias, stride):
    """Channels first; "SAME" padding puts the odd row and column at the end."""
    padding = []
    for size, window in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        padding += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x, padding), weight, bias, stride)


OPS = Ops(
    relu=torch.relu,
    gelu=lambda x: functional.gelu(x, approximate="tanh"),
    softmax=lambda x: torch.softmax(x, -1),
    rsqrt=torch.rsqrt,
    einsum=torch.einsum,
    images=lambda x: x.permute(0, 3, 1, 2),
    conv=_conv,
    pool=lambda x: x.mean((2, 3)),
)


def _tensor(array):
    """A parameter, those of convolutions with channels first."""
    tensor = torch.from_numpy(array)
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor


def _arguments(case):
    """The model of one example, parameters and inputs."""
    one = lambda params, x: case.model(OPS, params, x[None])[0]
    return one, map_params(_tensor, case.params), torch.from_numpy(case.x)


def jacobian(case: Case) -> Callable[[], Any]:
    """Contract Jacobians."""
    one, params, x = _arguments(case)

    def kernel():
        jacobians = torch.func.vmap(torch.func.jacrev(one), (None, 0))(params, x)
        total = 0.0
        for leaf in leaves(jacobians):
            flat = leaf.flatten(2)
            total = total + torch.einsum("ikp,jlp->ijkl", flat, flat)
        return total

    return kernel


def vector_products(case: Case) -> Callable[[], Any]:
    """Multiply one example's Jacobian with each column of the other's, transposed."""
    one, params, x = _arguments(case)
    basis = torch.eye(one(params, x[0]).shape[0])
    vmap = torch.func.vmap

    def pair(x1, x2):
        _, pullback = torch.func.vjp(lambda p: one(p, x2), params)

        def column(vector):
            (tangent,) = pullback(vector)
            return torch.func.jvp(lambda p: one(p, x1), (params,), (tangent,))[1]

        return vmap(column, out_dims=1)(basis)

    kernel = vmap(vmap(pair, (None, 0)), (0, None))
    return lambda: kernel(x, x)


TORCH = {"Jacobian": jacobian, "vector products": vector_products}
