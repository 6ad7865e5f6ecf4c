"""The curvature benchmark in PyTorch: curvlinops, hessian-eigenthings and PyHessian.

The network is the twin of ours: `torch.nn` modules with the weights copied. All
examples go into one batch, which is fastest for all three libraries.
"""

import functools
from collections.abc import Callable
from typing import Any

import curvlinops  # pyright: ignore[reportMissingImports]
import hessian_eigenthings as eigenthings  # pyright: ignore[reportMissingImports]
import numpy as np
import pyhessian  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from curvlinops.papyan2020traces.spectrum import (  # pyright: ignore[reportMissingImports]
    fast_lanczos,
    lanczos_approximate_spectrum,
)
from hessian_eigenthings.algorithms.lanczos import (  # pyright: ignore[reportMissingImports]
    lanczos_tridiagonal,
)
from hessian_eigenthings.loss_fns.standard import (  # pyright: ignore[reportMissingImports]
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
)
from scipy.sparse.linalg import eigsh
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.curvature_cases import (
    NUM_EIGENVALUES,
    NUM_MOMENTS,
    NUM_SAMPLES,
    Case,
    largest,
    signs,
)

LOSS = nn.CrossEntropyLoss()


class _Average(nn.Module):
    """The average over pixels."""

    def forward(self, x):
        return x.mean((2, 3))


def _weight(w):
    """A weight in PyTorch's layout: outputs first."""
    order = (3, 2, 0, 1) if w.ndim == 4 else (1, 0)
    return torch.from_numpy(np.ascontiguousarray(w.transpose(order)))


def _flat(layers):
    """A vector shaped like the parameters, as PyTorch orders them."""
    parts = [
        a.reshape(-1) for w, b in layers for a in (_weight(w), torch.from_numpy(b))
    ]
    return torch.cat(parts)


def network(case: Case) -> nn.Module:
    """The twin, with the weights copied."""
    modules = []
    for number, (w, _) in enumerate(case.layers):
        last = number == len(case.layers) - 1
        if w.ndim == 4:
            modules += [
                nn.Conv2d(*w.shape[2:], 3, padding=1, dtype=_dtype(w)),
                nn.Tanh(),
            ]
            next_is_dense = case.layers[number + 1][0].ndim == 2
            modules.append(_Average() if next_is_dense else nn.AvgPool2d(2))
        else:
            modules.append(nn.Linear(*w.shape, dtype=_dtype(w)))
            modules += [] if last else [nn.Tanh()]
    model = nn.Sequential(*modules)
    with torch.no_grad():
        for param, value in zip(model.parameters(), _tensors(case), strict=True):
            param.copy_(value)
    return model


def _tensors(case):
    return [a for w, b in case.layers for a in (_weight(w), torch.from_numpy(b))]


def _dtype(array):
    return torch.from_numpy(array[:0]).dtype


def _data(case):
    """The one batch."""
    x = torch.from_numpy(case.x)
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous()
    return [(x, torch.from_numpy(case.y))]


def gradient(case: Case) -> Callable[[], Any]:
    """One gradient of the mean loss."""
    model, ((x, y),) = network(case), _data(case)
    params = list(model.parameters())
    return lambda: float(torch.autograd.grad(LOSS(model(x), y), params)[0].sum())


def _curvlinops(case, kind):
    model = network(case)
    params = list(model.parameters())
    return kind(model, LOSS, params, _data(case), check_deterministic=False)


def _eigenthings(case, kind):
    model, data = network(case), _data(case)
    if kind == "Hessian":
        return eigenthings.HessianOperator(model, data, supervised_loss(LOSS))
    read = supervised_loss_of_output(LOSS)
    return eigenthings.GGNOperator(model, data, supervised_forward, read)


def curvlinops_lanczos(case: Case, kind: Any) -> Callable[[], Any]:
    """A Lanczos run without reorthogonalisation, its largest Ritz value."""
    operator = _curvlinops(case, kind)
    return lambda: float(fast_lanczos(operator, case.num_steps)[0].max())


def curvlinops_density(case: Case) -> Callable[[], Any]:
    """The spectral density; its boundaries are given, to find them would cost more."""
    operator = _curvlinops(case, curvlinops.HessianLinearOperator)
    density = lambda: lanczos_approximate_spectrum(
        operator,
        case.density_steps,
        num_repeats=case.num_probes,
        boundaries=(-10.0, 10.0),
    )
    return lambda: float(density()[1].max())


def eigenthings_lanczos(
    case: Case, kind: str, reorthogonalize: bool
) -> Callable[[], Any]:
    """A Lanczos run, its largest Ritz value."""
    operator = _eigenthings(case, kind)
    start = _flat(signs(case, 0))

    def run():
        found = lanczos_tridiagonal(
            operator, start, case.num_steps, reorthogonalize=reorthogonalize
        )
        return float(torch.linalg.eigvalsh(_dense(found)).max())

    return run


def _dense(found):
    size = len(found.alphas)
    beside = found.betas[: size - 1]
    return found.alphas.diag() + beside.diag(1) + beside.diag(-1)


def eigenthings_density(case: Case) -> Callable[[], Any]:
    """The spectral density."""
    operator = _eigenthings(case, "Hessian")
    density = lambda: eigenthings.spectral_density(
        operator,
        num_runs=case.num_probes,
        lanczos_steps=case.density_steps,
        num_grid_points=1024,
        seed=0,
    )
    return lambda: float(density().density.max())


def _double(build):
    """A result in float64, by libraries of which one reads the default dtype."""

    def built(case):
        case = case.as_type(np.float64)

        def call():
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float64)
            try:
                return np.asarray(build(case), np.float64)
            finally:
                torch.set_default_dtype(torch.float32)

        return call

    return built


@_double
def _curvlinops_eigenvalues(case):
    operator = _curvlinops(case, curvlinops.HessianLinearOperator).to_scipy()
    return largest(eigsh(operator, NUM_EIGENVALUES, which="LM")[0])


@_double
def _curvlinops_trace(case):
    operator = _curvlinops(case, curvlinops.HessianLinearOperator)
    # One sample a call: it gives no error bar of its own.
    samples = [
        float(curvlinops.hutchinson_trace(operator, 1)) for _ in range(NUM_SAMPLES)
    ]
    return _mean(samples)


def _mean(samples):
    """The mean and its standard error."""
    return np.mean(samples), np.std(samples, ddof=1) / np.sqrt(len(samples))


def _moments_by_products(product, case):
    """``v . H^k v / v . v`` for a vector of signs."""
    vector = image = _flat(signs(case, 0))
    moments = []
    for _ in range(NUM_MOMENTS):
        image = product(image)
        moments.append(float(vector @ image / (vector @ vector)))
    return moments


@_double
def _curvlinops_moments(case):
    operator = _curvlinops(case, curvlinops.HessianLinearOperator)
    return _moments_by_products(lambda v: operator @ v, case)


@_double
def _eigenthings_eigenvalues(case):
    operator = _eigenthings(case, "Hessian")
    return eigenthings.lanczos(
        operator,
        k=NUM_EIGENVALUES,
        max_iter=case.num_steps,
        reorthogonalize=True,
        which="LM",
        seed=0,
    ).eigenvalues


@_double
def _eigenthings_trace(case):
    operator = _eigenthings(case, "Hessian")
    found = eigenthings.trace(
        operator, num_matvecs=NUM_SAMPLES, method="hutchinson", seed=0
    )
    return found.estimate, found.stderr


@_double
def _eigenthings_moments(case):
    """The quadrature's moments: exact up to twice the number of nodes less one."""
    operator = _eigenthings(case, "Hessian")
    steps = (NUM_MOMENTS + 1) // 2
    found = lanczos_tridiagonal(operator, _flat(signs(case, 0)), steps)
    nodes, vectors = torch.linalg.eigh(_dense(found))
    weights = vectors[0] ** 2
    return [float(weights @ nodes**k) for k in range(1, NUM_MOMENTS + 1)]


def _pyhessian(case):
    return pyhessian.hessian(network(case), LOSS, data=_data(case)[0], cuda=False)


@_double
def _pyhessian_eigenvalues(case):
    return _pyhessian(case).eigenvalues(5_000, 1e-9, NUM_EIGENVALUES)[0]


@_double
def _pyhessian_trace(case):
    # With no tolerance it does not stop where the running mean happens to stand still.
    return _mean(_pyhessian(case).trace(NUM_SAMPLES, 0.0))


@_double
def _pyhessian_moments(case):
    found = _pyhessian(case)
    shapes = [p.shape for p in found.params]
    sizes = [p.numel() for p in found.params]

    def product(vector):
        parts = [
            part.reshape(shape)
            for part, shape in zip(vector.split(sizes), shapes, strict=True)
        ]
        images = pyhessian.utils.hessian_vector_product(
            found.gradsH, found.params, parts
        )
        return torch.cat([image.reshape(-1) for image in images])

    return _moments_by_products(product, case)


def _lanczos(kind, reorthogonalize=False):
    return functools.partial(
        eigenthings_lanczos, kind=kind, reorthogonalize=reorthogonalize
    )


_OPERATORS = {
    "Hessian": curvlinops.HessianLinearOperator,
    "GGN": curvlinops.GGNLinearOperator,
}
TORCH = {
    "PyTorch gradient": gradient,
    **{
        f"curvlinops {name}": functools.partial(curvlinops_lanczos, kind=kind)
        for name, kind in _OPERATORS.items()
    },
    "curvlinops density": curvlinops_density,
    "eigenthings Hessian": _lanczos("Hessian"),
    "eigenthings Hessian, full": _lanczos("Hessian", True),
    "eigenthings GGN": _lanczos("GGN"),
    "eigenthings density": eigenthings_density,
    "curvlinops eigenvalues": _curvlinops_eigenvalues,
    "curvlinops trace": _curvlinops_trace,
    "curvlinops moments": _curvlinops_moments,
    "eigenthings eigenvalues": _eigenthings_eigenvalues,
    "eigenthings trace": _eigenthings_trace,
    "eigenthings moments": _eigenthings_moments,
    "PyHessian eigenvalues": _pyhessian_eigenvalues,
    "PyHessian trace": _pyhessian_trace,
    "PyHessian moments": _pyhessian_moments,
}
