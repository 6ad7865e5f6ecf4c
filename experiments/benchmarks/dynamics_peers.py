"""The other side of the dynamics benchmark: ripser, SciPy, NumPy, and PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.dynamics_cases import BATCH, MOMENTUM, RATE, Points, Runs


def scipy_tree(case: Points) -> Callable[[], Any]:
    """Total length of SciPy's minimum spanning tree."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    return lambda: minimum_spanning_tree(case.distances).sum()


def ripser_tree(case: Points) -> Callable[[], Any]:
    """Sum of the lifetimes of persistent homology in dimension 0."""
    from ripser import ripser  # pyright: ignore[reportMissingImports]

    def call():
        diagram = ripser(case.distances, maxdim=0, distance_matrix=True)["dgms"][0]
        return np.sum(diagram[np.isfinite(diagram[:, 1]), 1], dtype=float)

    return call


def blas(case: Points) -> Callable[[], Any]:
    """Largest distance, by a centred Gram matrix of NumPy."""

    def call():
        centred = case.points - case.points.mean(0)
        gram = centred @ centred.T
        norms = np.diag(gram)
        squares = norms[:, None] + norms[None, :] - 2 * gram
        return np.sqrt(np.max(squares))

    return call


def torch_loops(case: Runs, threads: int | None = None) -> Callable[[], Any]:
    """Mean loss of the last step of all runs, one after another in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    x, y = torch.from_numpy(case.x), torch.from_numpy(case.y).long()
    width, batch = case.width, min(BATCH, len(case.y))

    def one(seed):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, 10),
        )
        for layer in net[::2]:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
        per_epoch, loss, order = len(y) // batch, torch.zeros(()), ()
        for step in range(case.num_steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(y)).split(batch)
            chosen = order[step % per_epoch]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
        return loss.item()

    def call():
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        found = np.mean([one(seed) for seed in range(case.num_runs)])
        torch.set_num_threads(before)
        return found

    return call


PEERS = {
    "SciPy": scipy_tree,
    "ripser": ripser_tree,
    "NumPy": blas,
    "PyTorch": torch_loops,
    "PyTorch, one thread": lambda case: torch_loops(case, 1),
}
