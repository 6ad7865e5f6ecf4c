"""Our side of the dynamics benchmark."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.dynamics_cases import (
    BATCH,
    MOMENTUM,
    RATE,
    Points,
    Recording,
    Runs,
)
from jaxtheory import dynamics

_CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels
_OPTIMIZER = optax.sgd(RATE, momentum=MOMENTUM)


def spanning_tree(case: Points) -> Callable[[], Any]:
    """Total length of the minimum spanning tree of given distances."""
    distances = jnp.asarray(case.distances)
    tree = dynamics.topology.minimum_spanning_tree
    return lambda: np.sum(np.asarray(tree(distances).lengths), dtype=float)


def distances(case: Points) -> Callable[[], Any]:
    """Largest distance of two points, by a Gram matrix."""
    points = jnp.asarray(case.points)
    return lambda: float(jnp.max(dynamics.topology.gram_distances(points)))


def _apply(params, x):
    *hidden, (w, b) = params
    for v, c in hidden:
        x = jax.nn.relu(x @ v + c[None])
    return x @ w + b[None]


@functools.partial(jax.jit, static_argnums=0)
def _start(sizes, key):
    """He's initialisation."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


_OBJECTIVE = dynamics.supervised(_apply, _CROSS_ENTROPY)


def _starts(case):
    sizes = (case.x.shape[1], case.width, case.width, 10)
    keys = jax.random.split(jax.random.key(0), case.num_runs)
    return jax.vmap(lambda key: _start(sizes, key))(keys)


def population(case: Runs) -> Callable[[], Any]:
    """Mean loss of the last step of all runs, trained together, on all devices."""
    data = jnp.asarray(case.x), jnp.asarray(case.y)
    starts, count = _starts(case), jax.device_count()
    if count > 1 and case.num_runs % count == 0:
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((count,), ("runs",), axis_types=auto)
        runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs"))
        starts = jax.device_put(starts, runs)
    keys = jax.random.split(jax.random.key(1), case.num_runs)

    def call():
        history = dynamics.train_population(
            _OBJECTIVE,
            dynamics.init_population(_OPTIMIZER, starts),
            _OPTIMIZER,
            data,
            num_steps=case.num_steps,
            keys=keys,
            batch_size=min(BATCH, len(case.y)),
            progress=False,
        )
        return np.mean(history.trace["loss"][-1])

    return call


def one_after_another(case: Runs) -> Callable[[], Any]:
    """The same by `train`."""
    data = jnp.asarray(case.x), jnp.asarray(case.y)
    starts = _starts(case)
    keys = jax.random.split(jax.random.key(1), case.num_runs)

    def one(run):
        history = dynamics.train(
            _OBJECTIVE,
            dynamics.init(_OPTIMIZER, jax.tree.map(lambda a: a[run], starts)),
            _OPTIMIZER,
            data,
            num_steps=case.num_steps,
            key=keys[run],
            batch_size=min(BATCH, len(case.y)),
            progress=False,
        )
        return history.trace["loss"][-1]

    return lambda: np.mean([one(run) for run in range(case.num_runs)])


def _recording(case, trace, store=None):
    """The loss of the last step, with what is traced at every step."""
    data = jnp.asarray(case.x), jnp.asarray(case.y)
    start = _start((784, case.width, case.width, 10), jax.random.key(0))
    state = dynamics.init(optax.sgd(0.01), start)
    optimizer = optax.sgd(0.01)
    return lambda: dynamics.train(
        _OBJECTIVE,
        state,
        optimizer,
        data,
        num_steps=case.num_steps,
        key=jax.random.key(1),
        batch_size=128,
        trace=trace,
        record_every=case.num_steps,
        store=store,
        progress=False,
    ).trace["loss"][-1]


_SKETCH = dynamics.sketch(dim=1024)


def stored_bytes(case: Recording) -> Callable[[], Any]:
    """What the sketch of a step takes on disk, in bytes."""

    def call():
        sizes = []
        for trace in (None, {"path": _SKETCH}):
            with tempfile.TemporaryDirectory() as folder:
                _recording(case, trace, folder)()
                files = Path(folder).glob("chunk-*")
                sizes.append(sum(file.stat().st_size for file in files))
        return (sizes[1] - sizes[0]) / case.num_steps

    return call


OURS = {
    "spanning tree": spanning_tree,
    "distances": distances,
    "population": population,
    "one after another": one_after_another,
    "plain training": lambda case: _recording(case, None),
    "training with sketches": lambda case: _recording(case, {"path": _SKETCH}),
    "bytes": stored_bytes,
}
