"""The curvature benchmark in JAX: what our package does, as its users call it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.benchmarks.curvature_cases import (
    NUM_EIGENVALUES,
    NUM_MOMENTS,
    NUM_SAMPLES,
    Case,
    Layers,
    largest,
    signs,
)
from jaxtheory import curvature, linalg, models

LOSS = optax.softmax_cross_entropy_with_integer_labels
NUM_GRADIENTS = 10


def variables(layers: Layers) -> Any:
    """Layers as our models hold them."""
    names = [f"layer_{i}" for i in range(1, len(layers))] + ["output"]
    pairs = zip(names, layers, strict=True)
    return {
        "params": {
            name: {"kernel": jnp.asarray(w), "bias": jnp.asarray(b)}
            for name, (w, b) in pairs
        }
    }


@functools.cache
def _apply(sizes, convolutional):
    """A model's function, one and the same for equal models: it is compiled once."""
    *hidden, num_outputs = sizes
    network = models.CNN if convolutional else models.MLP
    return network(hidden, num_outputs, activation=jnp.tanh).apply


def problem(case: Case) -> tuple[Any, ...]:
    """``(apply_fn, loss_fn, params, x, y)``."""
    sizes = tuple(w.shape[-1] for w, _ in case.layers)
    apply_fn = _apply(sizes, case.x.ndim == 4)
    x, y = jnp.asarray(case.x), jnp.asarray(case.y)
    return apply_fn, LOSS, variables(case.layers), x, y


def gradient(case: Case) -> Callable[[], Any]:
    """Several gradients in a loop, as training takes them; their mean time counts."""
    apply_fn, loss_fn, params, x, y = problem(case)
    mean = lambda params, x, y: jnp.mean(loss_fn(apply_fn(params, x), y))

    @jax.jit
    def descend(params, x, y):
        def step(params, _):
            slope = jax.grad(mean)(params, x, y)
            return jax.tree.map(lambda p, g: p - 1e-6 * g, params, slope), None

        return jax.lax.scan(step, params, None, length=NUM_GRADIENTS)[0]

    return lambda: jax.block_until_ready(descend(params, x, y)) and 0.0


@functools.partial(jax.jit, static_argnums=(2, 3))
def lanczos(operator: Any, start: Any, num_steps: int, reorthogonalise: Any) -> Any:
    """The tridiagonal matrix of a Lanczos run, dense."""
    vector, back = ravel_pytree(start)
    krylov = linalg.lanczos(
        lambda v: ravel_pytree(operator.mv(back(v)))[0],
        vector,
        num_iterations=num_steps,
        key=jax.random.key(0),
        reorthogonalise=reorthogonalise,
    )
    beside = krylov.off_diagonal
    return jnp.diag(krylov.diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)


def run_lanczos(case: Case, build: Any, reorthogonalise: str) -> Callable[[], Any]:
    """A Lanczos run, its largest Ritz value."""
    operator, start = build(*problem(case)), variables(signs(case, 0))
    run = lambda: lanczos(operator, start, case.num_steps, reorthogonalise)
    return lambda: float(jnp.linalg.eigvalsh(run())[-1])


def density(case: Case, reorthogonalise: Any) -> Callable[[], Any]:
    """The spectral density; the height of its peak."""
    operator, grid = curvature.hessian(*problem(case)), jnp.linspace(-10, 10, 1024)

    def run():
        spectrum = linalg.spectral_density(
            operator,
            key=jax.random.key(0),
            num_probes=case.num_probes,
            num_iterations=case.density_steps,
            reorthogonalise=reorthogonalise,
        )
        return float(spectrum.density(grid, width=0.1).value.max())

    return run


def memory(case: Case, num_batches: int) -> Callable[[], Any]:
    """Bytes that programs work in: a Lanczos run, its vectors, one batch's product."""
    apply_fn, loss_fn, params, x, y = problem(case)
    batch_size = None if num_batches == 1 else len(x) // num_batches
    operator = curvature.hessian(apply_fn, loss_fn, params, x, y, batch_size=batch_size)
    one = curvature.hessian(apply_fn, loss_fn, params, x[:batch_size], y[:batch_size])
    product = jax.jit(lambda operator, vector: operator.mv(vector))
    start = variables(signs(case, 0))

    def run():
        arguments = (operator, start, case.num_steps, "full")
        size = lambda program: program.compile().memory_analysis().temp_size_in_bytes
        vectors = case.num_steps * sum(a.nbytes for a in jax.tree.leaves(params))
        return np.array(
            [
                size(lanczos.lower(*arguments)),
                vectors,
                size(product.lower(one, start)),
            ],
            np.float64,
        )

    return run


def traces(case: Case) -> Callable[[], Any]:
    """How often the model is traced: by 2 Lanczos steps, by all, by all once more."""
    apply_fn, loss_fn, params, x, y = problem(case)

    def run():
        counts = []
        for num_steps, times in ((2, 1), (case.num_steps, 1), (case.num_steps, 2)):
            num_traces = 0

            def counted(params, x):
                nonlocal num_traces
                num_traces += 1
                return apply_fn(params, x)

            # To build an operator traces its product, which is kept, and its check.
            operator = curvature.hessian(counted, loss_fn, params, x, y)
            for _ in range(times):
                lanczos(operator, variables(signs(case, 0)), num_steps, "full")
            counts.append(num_traces)
        return np.array(counts, np.float64)

    return run


def _double(build):
    """A result in float64."""

    def built(case):
        def call():
            with jax.enable_x64(True):
                return np.asarray(build(case.as_type(np.float64)), np.float64)

        return call

    return built


@_double
def eigenvalues(case: Case) -> Any:
    """The eigenvalues of largest size, from both ends of the spectrum."""
    operator = curvature.hessian(*problem(case))
    ends = [
        find(
            operator,
            key=jax.random.key(0),
            num=NUM_EIGENVALUES,
            num_iterations=case.num_steps,
        ).values
        for find in (linalg.top_eigenpairs, linalg.bottom_eigenpairs)
    ]
    return largest(np.concatenate(ends))


@_double
def trace(case: Case) -> Any:
    """Hutchinson's estimate and its standard error."""
    found = linalg.trace(
        curvature.hessian(*problem(case)),
        key=jax.random.key(0),
        num_samples=NUM_SAMPLES,
    )
    return found.value, found.standard_error


@_double
def moments(case: Case) -> Any:
    """Moments of the quadrature that Lanczos gives from a vector of signs."""
    steps = (NUM_MOMENTS + 1) // 2
    operator = curvature.hessian(*problem(case))
    matrix = lanczos(operator, variables(signs(case, 0)), steps, "full")
    nodes, vectors = np.linalg.eigh(np.asarray(matrix))
    return [vectors[0] ** 2 @ nodes**k for k in range(1, NUM_MOMENTS + 1)]


@_double
def dense_spectrum(case: Case) -> Any:
    """All eigenvalues of the dense Hessian, which shares no code with the operator."""
    apply_fn, loss_fn, params, x, y = problem(case)
    flat, back = ravel_pytree(params)
    mean = lambda flat: jnp.mean(loss_fn(apply_fn(back(flat), x), y))
    return jnp.linalg.eigvalsh(jax.jit(jax.hessian(mean))(flat))


_run = lambda build, reorthogonalise: functools.partial(
    run_lanczos, build=build, reorthogonalise=reorthogonalise
)
OURS = {
    "gradient": gradient,
    "Hessian": _run(curvature.hessian, "none"),
    "Hessian, full": _run(curvature.hessian, "full"),
    "GGN": _run(curvature.ggn, "none"),
    "density": functools.partial(density, reorthogonalise="none"),
    "density, full": functools.partial(density, reorthogonalise="full"),
    "memory": functools.partial(memory, num_batches=1),
    "memory, batches": functools.partial(memory, num_batches=10),
    "traces": traces,
    "eigenvalues": eigenvalues,
    "trace": trace,
    "moments": moments,
    "dense spectrum": dense_spectrum,
}
