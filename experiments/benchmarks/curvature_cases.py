"""The networks of the curvature benchmark, for JAX and for PyTorch.

Weights, examples and probes are NumPy arrays drawn from one seed, in the layout of
Flax; each library brings them into its own. This module imports NumPy alone: it is read
in an environment that does not have JAX.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

# One entry a layer: weights [inputs, outputs] or [h, w, inputs, outputs], and biases.
Layers = list[tuple[np.ndarray, np.ndarray]]


class Case(NamedTuple):
    """A tanh network with its parameters and data; the loss is cross-entropy.

    Attributes:
        layers: Weights and biases; with four axes those of a 3x3 convolution, which is
            followed by an average over 2x2 pixels, the last one over all of them.
        x: Inputs ``[n, d]`` or ``[n, h, w, c]``.
        y: Labels ``[n]``.
        num_steps: Lanczos iterations.
        num_probes: Probes of the spectral density.
        density_steps: Lanczos iterations for each of them.
    """

    layers: Layers
    x: np.ndarray
    y: np.ndarray
    num_steps: int
    num_probes: int
    density_steps: int

    def as_type(self, dtype: Any) -> "Case":
        """The same with parameters and inputs of another dtype."""
        layers = [(w.astype(dtype), b.astype(dtype)) for w, b in self.layers]
        return self._replace(layers=layers, x=self.x.astype(dtype))


def largest(values: np.ndarray) -> np.ndarray:
    """The eigenvalues of largest size, largest first."""
    return values[np.argsort(-np.abs(values))][:NUM_EIGENVALUES]


def signs(case: Case, seed: int) -> Layers:
    """A vector of signs, shaped like the parameters."""
    rng = np.random.default_rng(seed)
    draw = lambda a: rng.choice([-1.0, 1.0], a.shape).astype(a.dtype)
    return [(draw(w), draw(b)) for w, b in case.layers]


def _case(shapes, x_shape, steps):
    """Draw a case from the shapes of its weights."""
    rng = np.random.default_rng(0)
    layers = []
    for shape in shapes:
        w = rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
        b = 0.1 * rng.standard_normal(shape[-1])
        layers.append((w.astype(np.float32), b.astype(np.float32)))
    x = rng.standard_normal(x_shape, np.float32)
    num_classes = shapes[-1][-1]
    # Classes of different sizes, so that no two large eigenvalues are close.
    sizes = 0.6 ** np.arange(num_classes)
    y = rng.choice(num_classes, x_shape[0], p=sizes / sizes.sum())
    return Case(layers, x, y, *steps)


def mlp(n: int, widths: tuple[int, ...], steps: tuple[int, int, int]) -> Case:
    """Dense layers of given widths, inputs and outputs included."""
    return _case(list(itertools.pairwise(widths)), (n, widths[0]), steps)


def cnn(
    n: int,
    size: int,
    channels: tuple[int, ...],
    num_outputs: int,
    steps: tuple[int, int, int],
) -> Case:
    """Convolutions on square images of one channel, and a dense layer."""
    shapes: list[tuple[int, ...]]
    shapes = [(3, 3, *pair) for pair in itertools.pairwise((1, *channels))]
    shapes.append((channels[-1], num_outputs))
    return _case(shapes, (n, size, size, 1), steps)


_QUICK = (4, 2, 3)
# By name: how to build it, with the arguments in full and small.
_CASES: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
    "MLP 784": (
        mlp,
        (5000, (784, 512, 512, 512, 10), (100, 10, 10)),
        (30, (12, 8, 8, 8, 3), _QUICK),
    ),
    "digits MLP": (
        mlp,
        (5000, (64, 64, 64, 64, 64, 10), (100, 10, 40)),
        (30, (8, 8, 8, 3), _QUICK),
    ),
    "CNN": (
        cnn,
        (5000, 8, (16, 32), 10, (100, 10, 20)),
        (30, 4, (2, 3), 3, _QUICK),
    ),
    # The same networks on so few examples that overhead counts, not arithmetic.
    "digits MLP, 250 examples": (
        mlp,
        (250, (64, 64, 64, 64, 64, 10), (100, 10, 40)),
        (20, (8, 8, 8, 3), _QUICK),
    ),
    "CNN, 250 examples": (
        cnn,
        (250, 8, (16, 32), 10, (100, 10, 20)),
        (20, 4, (2, 3), 3, _QUICK),
    ),
    "small MLP": (
        mlp,
        (200, (12, 16, 16, 5), (150, 10, 40)),
        (40, (6, 5, 5), (60, 2, 10)),
    ),
    "small CNN": (
        cnn,
        (100, 6, (6, 8), 5, (150, 10, 40)),
        (40, 4, (2, 3), 5, (50, 2, 10)),
    ),
}
NAMES = (  # on which time is taken
    "MLP 784",
    "digits MLP",
    "CNN",
    "digits MLP, 250 examples",
    "CNN, 250 examples",
)
SMALL = ("small MLP", "small CNN")  # on which results are compared in float64
NUM_EIGENVALUES = 5
NUM_MOMENTS = 9
NUM_SAMPLES = 400


def make(name: str, *, small: bool = False) -> Case:
    """Build one of the cases in `NAMES` or `SMALL`.

    Args:
        name: Its name.
        small: Whether in a size that takes no time.

    Returns:
        The case.
    """
    build, full, reduced = _CASES[name]
    return build(*(reduced if small else full))
