"""What is known of a pretrained network before it is transferred, and how well it does.

Features of a layer are divided by one number, their standard deviation over all
examples and coordinates of the target's training set: TransRate and NCTI depend on the
unit, and a linear probe does through its penalty.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.transfer.pool import Networks, cross_entropy, read
from experiments.transfer.targets import Task
from jaxtheory import bounds, collapse

# Scores of target features that are negated, so that more collapse is more of them.
COLLAPSE = ("NC1", "CDNV", "directional CDNV", "VCI")


def source_rows(networks: Networks, task: Task) -> dict[str, np.ndarray]:
    """Source accuracy and collapse of stacked networks, one number each."""
    model = networks.shape.model(task.num_classes)
    rows = {}
    for part, x, y in (
        ("train", task.x_train, task.y_train),
        ("test", task.x_test, task.y_test),
    ):
        layers, outputs = read(model, networks.variables, x)
        found = _collapse(_static(y), last(layers))
        rows |= {f"source {part} {n}": np.asarray(v) for n, v in found.items()}
        right = np.argmax(np.asarray(outputs), axis=2) == y
        rows[f"source {part} accuracy"] = right.mean(axis=1)
    return rows


def target_rows(layers: Any, outputs: Any, task: Task, key: Any) -> dict[str, Any]:
    """Every transfer score of the training features of a target, one number a network.

    `collapse_terms`, which NCTI compares over the pool, come as they are.
    """
    labels, features = _static(task.y_train), last(layers)
    found = _collapse(labels, features) | _scores(labels, features, outputs, key)
    return jax.tree.map(np.asarray, found)


def last(layers: dict[str, Any]) -> Any:
    """Features that the classifier acts on."""
    return layers[max(name for name in layers if name != "input")]


@jax.jit
def rescale(
    train: dict[str, Any], test: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Features of all layers in units of their deviation on the training set."""
    unit = {n: jnp.std(h, axis=1, keepdims=True) for n, h in train.items()}
    unit = {
        n: jnp.sqrt(jnp.mean(jnp.square(u), axis=2, keepdims=True))
        for n, u in unit.items()
    }
    return tuple({n: h[n] / unit[n] for n in h} for h in (train, test))  # pyright: ignore[reportReturnType]


def _static(labels):
    """Labels as a static argument: traced ones pad every class to all examples."""
    return tuple(int(label) for label in labels)


def _concrete(labels):
    """Static labels as an array that is not traced."""
    with jax.ensure_compile_time_eval():
        return jnp.array(labels)


@functools.partial(jax.jit, static_argnums=0)
def _collapse(labels, features):
    y = _concrete(labels)

    def one(h):
        found = collapse.statistics(h, y)
        numbers = (found.nc1, found.cdnv, found.directional_cdnv)
        vci = collapse.variability_collapse_index(h, y)
        return dict(zip(COLLAPSE, (*numbers, vci), strict=True))

    return jax.vmap(one)(features)


@functools.partial(jax.jit, static_argnums=0)
def _scores(labels, features, outputs, key):
    y = _concrete(labels)

    def one(h, outputs):
        scores = collapse.transfer_scores(h, y)
        return {
            "H-score": scores.h_score,
            "LogME": scores.log_evidence,
            "TransRate": scores.trans_rate,
            "NCTI": scores.collapse_terms,
            "LEEP": collapse.leep(jax.nn.softmax(outputs), y),
            # The same start for all networks.
            "Gaussian LEEP": collapse.gaussian_leep(h, y, key=key),
        }

    return jax.vmap(one)(features, outputs)


def choose(layers: dict[str, Any], task: Task) -> dict[str, np.ndarray]:
    """Index of the hidden layer that `collapse.choose_layer` chooses, by score."""
    hidden = {name: h for name, h in layers.items() if name != "input"}
    found = _choices(_static(task.y_train), hidden)
    return {name: np.asarray(best) for name, best in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _choices(labels, layers):
    y = _concrete(labels)

    def one(layers):
        best = lambda score: collapse.choose_layer(layers, y, score=score).best
        # In one program, that decomposes the features once.
        return {"LogME": best("log_evidence"), "VCI": best("variability_collapse")}

    return jax.vmap(one)(layers)


@jax.jit
def probe(train: Any, y_train: Any, test: Any, y_test: Any) -> Any:
    """Test accuracy of logistic regression on features of stacked networks.

    With a penalty of ``1/2 ||w||^2 / n`` on the weights of the mean loss, by 300 steps
    of Nesterov's accelerated gradient descent.

    Args:
        train: Training features ``[m, n, d]``.
        y_train: Their classes ``[n]``, or ``[m, n]``.
        test: Test features ``[m, t, d]``.
        y_test: Their classes ``[t]``.

    Returns:
        Accuracies ``[m]``.
    """
    y_train = jnp.broadcast_to(y_train, train.shape[:2])
    one = lambda args: _probe(args[0], args[1], args[2], y_test)
    return jax.lax.map(one, (train, y_train, test))


def _probe(train, y_train, test, y_test):
    n, d = train.shape
    centre = jnp.mean(train, axis=0, keepdims=True)
    x = jnp.hstack([train - centre, jnp.ones((n, 1))])
    # Half the largest eigenvalue bounds the curvature (Boehning 1992).
    curvature = 0.5 * jnp.linalg.norm(x, 2) ** 2 / n + 1 / n
    optimizer = optax.sgd(1 / curvature, momentum=0.95, nesterov=True)

    def loss(weights: Any):
        losses = cross_entropy(x @ weights, y_train)
        return jnp.mean(losses) + jnp.sum(jnp.square(weights[:-1])) / (2 * n)

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    # One output for every class that there can be: those without examples stay low.
    start: Any = jnp.zeros((d + 1, 10))
    carry: Any = (start, optimizer.init(start))
    weights: Any = jax.lax.scan(step, carry, length=300)[0][0]
    outputs = (test - centre) @ weights[:-1] + weights[-1:]
    return jnp.mean(jnp.argmax(outputs, axis=1) == y_test)


def raw_probe(task: Task) -> float:
    """`probe` on pixels, what a network has to beat."""
    flat = {"x": task.x_train.reshape(1, len(task.x_train), -1)}
    test = {"x": task.x_test.reshape(1, len(task.x_test), -1)}
    train, test = rescale(flat, test)
    return float(probe(train["x"], task.y_train, test["x"], task.y_test)[0])


def few_shot_probe(
    train: Any, test: Any, task: Task, count: int, num_draws: int, seed: int
) -> np.ndarray:
    """`probe` on a few examples a class, mean over draws that all networks share."""
    draw = np.random.default_rng(seed)
    train, found = np.asarray(train), []
    for _ in range(num_draws):
        rows = shots(task.y_train, count, draw)
        found.append(probe(train[:, rows], task.y_train[rows], test, task.y_test))
    return np.mean(found, axis=0)


def shots(y: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Rows of so many examples of each class, class by class."""
    rows = [np.flatnonzero(y == label) for label in np.unique(y)]
    return np.concatenate([draw.choice(some, count, replace=False) for some in rows])


def nearest_mean_error(
    features: Any, task: Task, test: Any, count: int, num_draws: int, seed: int
) -> float:
    """Mean test error of the nearest of class means taken from a few shots a class."""
    draw = np.random.default_rng(seed)
    train, test = np.asarray(features), np.asarray(test)
    errors = []
    for _ in range(num_draws):
        rows = shots(task.y_train, count, draw)
        means = train[rows].reshape(task.num_classes, count, -1).mean(axis=1)
        # ||h||^2 is the same for all classes.
        distances = np.sum(means**2, axis=1) - 2 * test @ means.T
        errors.append(np.mean(np.argmin(distances, axis=1) != task.y_test))
    return float(np.mean(errors))


def few_shot_bounds(
    features: Any, task: Task, count: int | None
) -> tuple[float, float]:
    """Plug-in few-shot bound, with directional variances and with those of the CDNV."""
    moments = collapse.pair_moments(jnp.asarray(features), jnp.asarray(task.y_train))
    return tuple(  # pyright: ignore[reportReturnType]
        bounds.few_shot(moments, count, axis_variance=axis).value
        for axis in ("directional", "total")
    )
