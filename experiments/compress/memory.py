"""Peak memory of training, each kind in a process of its own.

``python -m experiments.compress.memory KIND WIDTH NUM_LAYERS DIM`` trains for some
steps and prints the largest resident memory of the process, in MiB.
"""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import compression, dynamics, models

KINDS = ("plain", "seed", "model_state")
_STEPS = 20


def peaks(
    width: int, num_layers: int, dim: int, repeats: int = 3
) -> dict[str, np.ndarray]:
    """Peak memory by kind of training, less that of the same with eight nodes.

    Args:
        width: Nodes of each hidden layer.
        num_layers: Number of hidden layers. What a step needs beside the parameters and
            their gradient is some copies of the largest array: of one layer in many
            that is little.
        dim: Dimension of the subspace.
        repeats: How often; the allocator does not take the same twice.

    Returns:
        MiB that the network takes, ``[repeats]``: in ``"plain"`` training with Adam,
        and in training of a subspace through a start from the ``"seed"`` or in the
        ``"model_state"``; and ``"parameters"``, those of one copy.
    """
    peak = lambda kind, nodes: _peak(kind, nodes, num_layers, dim)
    more = lambda kind: peak(kind, width) - peak(kind, 8)
    rows = [[more(kind) for kind in KINDS] for _ in range(repeats)]
    found = dict(zip(KINDS, np.array(rows).T, strict=True))
    sizes = (64, *(width,) * num_layers, 10)
    pairs = itertools.pairwise(sizes)
    num_params = sum(before * after + after for before, after in pairs)
    return found | {"parameters": np.full(repeats, 4 * num_params / 2**20)}


def _peak(kind, *numbers):
    command = [sys.executable, "-m", __name__, kind, *map(str, numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def train(kind: str, width: int, num_layers: int, dim: int) -> float:
    """Train a network; the peak of this process in MiB."""
    module = models.MLP((width,) * num_layers, num_outputs=10)
    subspace = compression.random_subspace(
        lambda key: module.init(key, jnp.zeros((1, 64))), dim=dim, seed=0
    )
    loss = optax.softmax_cross_entropy_with_integer_labels
    objective, model_state = dynamics.supervised(module.apply, loss), ()
    start = jnp.zeros(dim)
    if kind == "plain":
        start = subspace.start()
    else:
        start_of = "seed" if kind == "seed" else "model_state"
        objective = subspace.objective(objective, start=start_of)
    if kind == "model_state":
        model_state = compression.SubspaceState(subspace.start(), ())
    optimizer = optax.adam(1e-3)
    history = dynamics.train(
        objective,
        dynamics.init(optimizer, start, model_state=model_state),
        optimizer,
        (jnp.zeros((1000, 64)), jnp.zeros(1000, int)),
        num_steps=_STEPS,
        batch_size=100,
        record_every=_STEPS // 2,
        key=jax.random.key(0),
        progress=False,
    )
    jax.block_until_ready(history.state)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    if found is None:
        raise ValueError("the system must tell the peak of a process (VmHWM).")
    return int(found[1]) / 2**10


if __name__ == "__main__":
    print(train(sys.argv[1], *map(int, sys.argv[2:])))
