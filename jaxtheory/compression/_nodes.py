"""Pruning of whole nodes: arrays that are really smaller."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory._types import Params
from jaxtheory.batching import check_params
from jaxtheory.compression._amount import check_amount


class PrunedNodes(NamedTuple):
    """Parameters of a smaller network.

    Attributes:
        params: Those of the layers with fewer nodes; of all others, as they were.
        kept: Indices of the nodes that each hidden layer keeps, in their order.
        widths: How many they are: the sizes of the network to build,
            ``models.MLP(tuple(found.widths.values()), ...)``.
        relative_error: ``|W' - W| / |W|`` of each hidden layer's kernel, in the
            Frobenius norm, ``W'`` with the columns of the nodes left out at zero.
    """

    params: Params
    kept: dict[str, np.ndarray]
    widths: dict[str, int]
    relative_error: dict[str, float]


def prune_nodes(
    params: Mapping[str, Any],
    *,
    layers: Sequence[str],
    fraction: float | None = None,
    relative_error: float | None = None,
) -> PrunedNodes:
    r"""Leave out the nodes (or channels) whose incoming weights are smallest.

    Of a chain of layers ``h_{l+1} = \phi(h_l W_l + b_l)`` the columns of ``W_l`` with
    the smallest Euclidean norms go, with their entries of ``b_l`` and their rows of
    ``W_{l+1}``: the arrays are smaller, and so are file, memory and time. What a node
    without incoming weights still says, ``phi(b)``, goes too.

    Either the given share of each hidden layer's nodes, or as many as leave ``|W' -
    W|_F <= relative_error |W|_F``. One node stays always.

    Args:
        params: Parameters of a Flax module: ``{"params": {layer: {"kernel", "bias"}}}``
            or what is below ``"params"``. Kernels are ``[..., in, out]``: of dense
            layers, and of convolutions with pooling over all pixels before the first
            dense one (as in `models.CNN`).
        layers: Names of the layers from input to output. Of the last one no node goes.
        fraction: Share of the nodes of each hidden layer to leave out, in [0, 1),
            rounded down.
        relative_error: Largest error in each kernel, in [0, 1); give this or
            `fraction`.

    Returns:
        The smaller parameters, and what was left out. Computed on the host: the shapes
        depend on the values.

    Raises:
        ValueError: A layer is missing, has other arrays than kernel and bias (such as
            those of BatchNorm), does not feed the next one, or is not finite; both or
            neither of `fraction` and `relative_error` are given, or out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> x = jnp.ones((1, 5))
        >>> params = models.MLP((8, 6), num_outputs=2).init(jax.random.key(0), x)
        >>> layers = ("layer_1", "layer_2", "output")
        >>> found = prune_nodes(params, layers=layers, fraction=0.5)
        >>> found.widths
        {'layer_1': 4, 'layer_2': 3}
        >>> models.MLP((4, 3), num_outputs=2).apply(found.params, x).shape
        (1, 2)

    References:
        Barsbey et al., arXiv:2106.03795 (node pruning); Wan et al., arXiv:2306.08125
        (a relative error as the target).
    """
    check_params(params)
    name, amount = check_amount(fraction, relative_error)
    modules = params.get("params", params)
    chain = _chain(modules, layers)
    kept, errors = {}, {}
    for layer in layers[:-1]:
        kernel = np.asarray(chain[layer]["kernel"], float)
        kept[layer], errors[layer] = _kept(kernel, name, amount)
    small = dict(modules)
    for index, layer in enumerate(layers):
        before = kept.get(layers[index - 1]) if index else None
        small[layer] = _smaller(chain[layer], before, kept.get(layer))
    found = {**params, "params": small} if "params" in params else small
    widths = {layer: len(nodes) for layer, nodes in kept.items()}
    return PrunedNodes(found, kept, widths, errors)


def _chain(modules, layers):
    """The layers by name; raise unless each feeds the next."""
    if isinstance(layers, str) or len(layers) < 2:
        raise ValueError(
            "`layers` must name at least two layers, from input to output, but was "
            f"{layers!r}."
        )
    for layer in layers:
        held = modules.get(layer)
        names = set(held) if isinstance(held, Mapping) else None
        if names is None or not {"kernel"} <= names <= {"kernel", "bias"}:
            was = "is missing" if names is None else f"has {sorted(names)}"
            raise ValueError(
                "`layers` must name layers that are a kernel and a bias, but "
                f"{layer!r} {was}; there are {sorted(modules)}. Fold BatchNorm into "
                "them first."
            )
        for array in jax.tree.leaves(held):
            if not bool(jnp.isfinite(array).all()):
                raise ValueError(f"`params` must be finite, but {layer!r} is not.")
    for layer, after in itertools.pairwise(layers):
        out, into = modules[layer]["kernel"].shape, modules[after]["kernel"].shape
        if out[-1] != into[-2]:
            raise ValueError(
                f"`layers` must feed each other, but {layer!r} has a kernel {out} and "
                f"{after!r} one {into}: axis -1 of the first must be axis -2 of the "
                "next. Is a layer left out, or are pixels flattened between them?"
            )
    return modules


def _kept(kernel, name, amount):
    """The nodes that stay, and the relative error of the kernel."""
    squares = np.sum(kernel.reshape(-1, kernel.shape[-1]) ** 2, axis=0)
    order = np.argsort(squares, kind="stable")
    errors = np.sqrt(np.cumsum(squares[order]) / max(squares.sum(), 1e-300))
    num = int(amount * len(order))
    if name == "relative_error":
        num = int(np.sum(errors <= amount))
    num = min(num, len(order) - 1)
    return np.sort(order[num:]), float(errors[num - 1]) if num else 0.0


def _smaller(layer, before, own):
    """A layer without the inputs and the nodes that went."""
    # Cut by NumPy: each number of nodes would be another program.
    arrays = {name: np.asarray(array) for name, array in layer.items()}
    if before is not None:
        arrays["kernel"] = np.take(arrays["kernel"], before, axis=-2)
    if own is not None:
        arrays = {name: np.take(array, own, axis=-1) for name, array in arrays.items()}
    return {name: jnp.asarray(array) for name, array in arrays.items()}
