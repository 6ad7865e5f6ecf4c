"""Networks made small, and what that certifies: ``python -m experiments.compression``.

A trained network of digits is made small in two ways: nodes are left out, the others
trained on, rounded and arithmetically coded (Han et al., arXiv:1510.00149); or only a
few numbers are trained from the beginning, in a random subspace, and coded with their
seed (Lotfi et al., arXiv:2211.13609), which is short enough for a certificate from the
length of the file. Beside it: do heavier tails in the noise of training make a network
that loses less when its nodes are left out (Barsbey et al., arXiv:2106.03795; Wan et
al., arXiv:2306.08125)?
"""

import dataclasses
import functools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.compress import memory, page
from experiments.folder import run_command
from jaxtheory import bounds, compression, data, dynamics, models, optimizers

_LOSS = optax.softmax_cross_entropy_with_integer_labels


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        model: ``"mlp"``, or ``"cnn"`` on images.
        widths: Hidden layers of the network (channels of the blocks).
        num_train: Digits to train on; the others are for tests.
        steps: Steps of training, of a network and of the coordinates in a subspace.
        tune_steps: Steps of training after nodes were left out.
        level_steps: Steps of training straight through the levels.
        batch_size: Examples a step.
        learning_rate: Of Adam; in subspaces multiplied by ``sqrt(p / dim)``.
        target_error: Error of the kernels that is allowed.
        dims: Dimensions of the subspaces that are coded for a certificate.
        num_levels: Numbers of levels there.
        large_dim: Dimension of the subspace that is coded for accuracy.
        large_levels: Levels there.
        alphas: Tail indices of the noise.
        noise_scale: Its scale.
        noise_rate: Learning rate of SGD with it.
        errors: Errors of the kernels at which nodes are left out of these networks.
        accuracy: What a pruned one of these must reach.
        memory_width: Nodes of each layer where memory is measured; 0 for not.
        memory_layers: Hidden layers there.
        rounds: Rounds of timing.
        delta: Probability that a bound may fail.
        num_seeds: Splits and initialisations, at least 2.
        seed: Seed of everything.
        quick: Whether to run a small version, in less than a minute.
        out: Folder for the numbers and the figure.
    """

    model: str = "mlp"
    widths: tuple[int, ...] = (256, 256)
    num_train: int = 1297
    steps: int = 2000
    tune_steps: int = 1000
    level_steps: int = 3000
    batch_size: int = 100
    learning_rate: float = 1e-3
    target_error: float = 0.8
    dims: tuple[int, ...] = (250, 350)
    num_levels: tuple[int, ...] = (3, 4)
    large_dim: int = 2000
    large_levels: int = 16
    alphas: tuple[float, ...] = (2.0, 1.8, 1.6)
    noise_scale: float = 5e-4
    noise_rate: float = 0.05
    errors: tuple[float, ...] = tuple(np.round(np.arange(0.1, 0.95, 0.05), 2))
    accuracy: float = 0.95
    memory_width: int = 1024
    memory_layers: int = 6
    rounds: int = 20
    delta: float = 0.05
    num_seeds: int = 5
    seed: int = 0
    quick: bool = False
    out: Path = Path("runs/compression")


QUICK: dict[str, Any] = {
    "widths": (64, 64),
    "steps": 500,
    "tune_steps": 300,
    "level_steps": 500,
    "dims": (150,),
    "num_levels": (3,),
    "large_dim": 500,
    "alphas": (2.0, 1.6),
    "errors": (0.3, 0.6),
    "memory_width": 0,
    "rounds": 3,
    "num_seeds": 2,
}


class Arm(NamedTuple):
    """Networks of one kind, a number each for every seed.

    Attributes:
        size: Bytes on disk.
        accuracy: Share of test examples that are right.
        seconds: Of a forward pass of 256 examples, median.
        bound: The bound from the length of the file; NaN for one that was not coded.
        certificate: Whether it is one.
        widths: Nodes of each layer, ``[seeds, layers]``.
        coded: Dimension and levels of what was coded; zeros for whole networks.
    """

    size: np.ndarray
    accuracy: np.ndarray
    seconds: np.ndarray
    bound: np.ndarray
    certificate: np.ndarray
    widths: np.ndarray
    coded: np.ndarray


class Noise(NamedTuple):
    """Networks trained with one kind of noise, nodes left out and not trained on.

    Attributes:
        accuracy: Of the whole network on test examples, ``[seeds]``.
        pruned: The same at each error, ``[seeds, errors]``.
        num_params: Numbers left there.
    """

    accuracy: np.ndarray
    pruned: np.ndarray
    num_params: np.ndarray


class Result(NamedTuple):
    """What was measured.

    Attributes:
        arms: Networks by how they were made.
        noise: The same by tail index; ``"none"`` for plain SGD.
        memory: Peak memory of training in MiB, by kind, several times.
    """

    arms: dict[str, Arm]
    noise: dict[str, Noise]
    memory: dict[str, np.ndarray]


def run(config: Config) -> Result:
    """Train, make small, measure.

    Raises:
        ValueError: There are fewer than two seeds, or another model.
    """
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    if config.model not in ("mlp", "cnn"):
        raise ValueError(f"`model` must be 'mlp' or 'cnn', but was {config.model!r}.")
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    rows = [_one(config, seed) for seed in range(config.num_seeds)]
    arms = {name: _columns(Arm, [row[0][name] for row in rows]) for name in rows[0][0]}
    noise = {
        name: _columns(Noise, [row[1][name] for row in rows]) for name in rows[0][1]
    }
    peaks = {}
    if config.memory_width:
        peaks = memory.peaks(
            config.memory_width, config.memory_layers, config.large_dim
        )
    return Result(arms, noise, peaks)


def _columns(kind, rows):
    return kind(*[np.asarray(column) for column in zip(*rows, strict=True)])


@functools.cache
def _module(model, widths):
    """One object for each size: of two equal ones programs would be compiled twice."""
    kind = models.MLP if model == "mlp" else models.CNN
    return kind(widths, num_outputs=10)


class _Task(NamedTuple):
    """What all arms of one seed share."""

    config: Config
    train: tuple
    test: tuple
    key: Any

    def module(self, widths):
        return _module(self.config.model, tuple(widths))

    def layers(self):
        hidden = range(1, len(self.config.widths) + 1)
        return (*(f"layer_{index}" for index in hidden), "output")

    def accuracy(self, module, params):
        outputs = module.apply(params, self.test[0])
        return float(np.mean(np.argmax(outputs, 1) == np.asarray(self.test[1])))

    def fit(
        self, objective, start, optimizer, steps, stream, model_state=(), noisy=False
    ):
        state = dynamics.init(optimizer, start, model_state=model_state)
        if noisy:
            # Each seed has its own noise, and all of them one program.
            key = jax.random.fold_in(self.key, stream + 1)
            opt_state = optax.tree.set(state.opt_state, key=key)
            state = state._replace(opt_state=opt_state)
        history = dynamics.train(
            objective,
            state,
            optimizer,
            self.train,
            num_steps=steps,
            batch_size=self.config.batch_size,
            key=jax.random.fold_in(self.key, stream),
            progress=False,
        )
        return history.state.params


@functools.cache
def _adam(rate, steps):
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


@functools.cache
def _sgd(rate, scale, alpha):
    """With noise unless `alpha` is None; its key is set where it is used."""
    if alpha is None:
        return optax.sgd(rate)
    key = jax.random.key(0)
    noise = optimizers.heavy_tailed_noise(scale, alpha, form="row", key=key)
    return optax.chain(optax.sgd(rate), noise)


def _one(config, seed):
    """All arms of one seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    split, start, rest = jax.random.split(key, 3)
    image = config.model == "cnn"
    digits = data.digits(num_train=config.num_train, key=split, image=image)
    task = _Task(
        config,
        (digits.x_train, digits.y_train),
        (digits.x_test, digits.y_test),
        rest,
    )
    module = task.module(config.widths)
    initial = module.init(start, digits.x_train[:1])
    objective = dynamics.supervised(module.apply, _LOSS)
    adam = _adam(config.learning_rate, config.steps)
    params = task.fit(objective, initial, adam, config.steps, 0)
    with tempfile.TemporaryDirectory() as folder:
        rows, timed = _pruned(task, params, Path(folder))
        rows |= _subspaces(task, Path(folder))
    seconds = _seconds(task, timed)
    # Networks in a subspace are as wide as the plain one.
    arms = {
        name: (*row[:2], seconds.get(name, seconds["plain"]), *row[2:])
        for name, row in rows.items()
    }
    return arms, _noises(task, initial)


def _pruned(task, params, folder):
    """The plain network and those with fewer nodes; what is timed."""
    config = task.config
    module = task.module(config.widths)

    def tune(smaller, widths):
        objective = dynamics.supervised(task.module(widths.values()).apply, _LOSS)
        adam = _adam(config.learning_rate, config.tune_steps)
        return task.fit(objective, smaller, adam, config.tune_steps, 1)

    rows, timed = {}, {"plain": (module, params)}
    for name, how in {"pruned": None, "pruned, trained on": tune}.items():
        found = compression.compress(
            params,
            folder / name,
            layers=task.layers(),
            target_error=config.target_error,
            fine_tune=how,
        )
        widths = tuple(found.widths.values())
        small = task.module(widths)
        timed[name] = small, found.params
        whole = (np.nan, False, config.widths, (0, 0))
        rows["plain"] = (found.size_before, task.accuracy(module, params), *whole)
        bound = bounds.compression(
            small.apply,
            compression.load_compressed,
            folder / name,
            *task.train,
            delta=config.delta,
        )
        certified = (bound.value, bound.certificate, widths, (0, 0))
        rows[name] = (found.size_after, task.accuracy(small, found.params), *certified)
    return rows, timed


def _subspaces(task, folder):
    """The file of smallest bound, and the one of a larger subspace."""
    config = task.config
    rows = [
        row
        for dim in config.dims
        for row in _coded(task, folder, dim, config.num_levels, tuned=True)
    ]
    large = _coded(task, folder, config.large_dim, (config.large_levels,), tuned=False)
    return {
        "subspace, by bound": min(rows, key=lambda row: row[2]),
        "subspace, large": large[0],
    }


@functools.cache
def _subspace(model, widths, dim):
    """One for all splits: the first seed is as good as any, and one program."""
    shape = (1, 64) if model == "mlp" else (1, 8, 8, 1)
    init_fn = lambda key: _module(model, widths).init(key, jnp.zeros(shape))
    return compression.random_subspace(init_fn, dim=dim, seed=0)


def _coded(task, folder, dim, num_levels, *, tuned):
    """Train in one subspace and write it with several numbers of levels."""
    config, module = task.config, task.module(task.config.widths)
    subspace = _subspace(config.model, config.widths, dim)
    start = subspace.start()
    objective = subspace.objective(
        dynamics.supervised(module.apply, _LOSS), start="model_state"
    )
    state = compression.SubspaceState(start, ())
    num_params = sum(leaf.size for leaf in jax.tree.leaves(start))
    rate = config.learning_rate * 3 * (num_params / dim) ** 0.5
    adam = _adam(rate, config.steps)
    u = task.fit(objective, jnp.zeros(dim), adam, config.steps, 2, state)
    decode = functools.partial(compression.load_compressed, init_fn=subspace.init_fn)
    rows = []
    for levels in num_levels:
        quantised = compression.quantise(u, num_levels=levels)
        if tuned:
            codebook = compression.Codebook(u, jnp.asarray(quantised.levels))
            through = compression.straight_through(objective)
            adam = _adam(rate, config.level_steps)
            codebook = task.fit(through, codebook, adam, config.level_steps, 3, state)
            quantised = compression.quantise(codebook.values, levels=codebook.levels)
        path = folder / f"{dim}-{levels}"
        size = compression.save_compressed(path, quantised, subspace=subspace)
        bound = bounds.compression(
            module.apply, decode, path, *task.train, delta=config.delta
        )
        accuracy = task.accuracy(module, decode(path))
        certified = (bound.value, bound.certificate)
        rows.append((size, accuracy, *certified, config.widths, (dim, levels)))
    return rows


def _seconds(task, timed):
    """Median time of a forward pass of 256 examples, all in turns."""
    x = task.train[0][:256]
    calls = {
        name: (jax.jit(module.apply), params)
        for name, (module, params) in timed.items()
    }
    for function, params in calls.values():
        function(params, x).block_until_ready()
    found = {name: [] for name in calls}
    for _ in range(task.config.rounds):
        for name, (function, params) in calls.items():
            for _ in range(10):
                begin = time.perf_counter()
                function(params, x).block_until_ready()
                found[name].append(time.perf_counter() - begin)
    return {name: float(np.median(times)) for name, times in found.items()}


def _noises(task, initial):
    """Networks trained with noise of each tail index, and with none."""
    config, module = task.config, task.module(task.config.widths)
    objective = dynamics.supervised(module.apply, _LOSS)
    found = {}
    for alpha in (None, *config.alphas):
        noisy = alpha is not None
        sgd = _sgd(config.noise_rate, config.noise_scale, alpha)
        params = task.fit(objective, initial, sgd, config.steps, 4, noisy=noisy)
        name = "none" if alpha is None else f"{alpha:g}"
        found[name] = (task.accuracy(module, params), *_without_nodes(task, params))
    return found


def _without_nodes(task, params):
    """Accuracy and size with nodes left out, at each error."""
    module, accuracies, sizes = task.module(task.config.widths), [], []
    for error in task.config.errors:
        found = compression.prune_nodes(
            params, layers=task.layers(), relative_error=float(error)
        )
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(found.params)))
        # In the shapes of the whole network, so that nothing is compiled anew.
        inside = dict(params["params"])
        for layer, nodes in found.kept.items():
            mask = np.zeros(inside[layer]["bias"].shape, np.float32)
            mask[nodes] = 1
            inside[layer] = {
                name: np.asarray(leaf) * mask for name, leaf in inside[layer].items()
            }
        accuracies.append(task.accuracy(module, {"params": inside}))
    return accuracies, sizes


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
