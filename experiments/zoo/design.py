"""Which networks the zoo holds: a full factorial design, in groups of one program."""

import itertools
from typing import Any, NamedTuple

# The names under which hyperparameters stand in the ledger and in tables.
FACTORS = (
    "task",
    "label noise",
    "optimizer",
    "learning rate",
    "batch size",
    "width",
    "weight decay",
)
# What the variance decomposition adds up.
KINDS = {
    "task": "data",
    "label noise": "data",
    "width": "architecture",
    "optimizer": "algorithm",
    "learning rate": "hyperparameters",
    "batch size": "hyperparameters",
    "weight decay": "hyperparameters",
}
# What multiplies the factors `learning rate` and `weight decay` of the design. Momentum
# of .9 makes the first rate of SGD .05; decoupled decay takes rate times decay.
BASE_RATES = {"sgd": 0.005, "adam": 0.001}
BASE_DECAYS = {"sgd": 1e-3, "adam": 0.1}


class Cell(NamedTuple):
    """Networks that differ in their seed alone; in the order of `FACTORS`.

    Attributes:
        task: Word.
        label_noise: Share of training labels that were drawn at random.
        optimizer: Word.
        rate_factor: Times the base rate of the optimizer.
        batch_size: Examples a step.
        width: Units of both hidden layers.
        decay_factor: Times the base weight decay of the optimizer.
    """

    task: str
    label_noise: float
    optimizer: str
    rate_factor: float
    batch_size: int
    width: int
    decay_factor: float

    @property
    def learning_rate(self) -> float:
        """As the optimizer takes it."""
        return BASE_RATES[self.optimizer] * self.rate_factor

    @property
    def weight_decay(self) -> float:
        """As the optimizer takes it."""
        return BASE_DECAYS[self.optimizer] * self.decay_factor


class Group(NamedTuple):
    """Cells whose networks are trained and measured together.

    Attributes:
        number: From 0; its random keys follow from it.
        cells: The cells, by their number.
    """

    number: int
    cells: dict[int, Cell]

    @property
    def name(self) -> str:
        """What its file is called."""
        cell = next(iter(self.cells.values()))
        shared = (cell.task, f"{cell.label_noise:g}", cell.optimizer)
        return "-".join([*shared, f"b{cell.batch_size}", f"w{cell.width}"])


def all_cells(config: Any) -> list[Cell]:
    """The full factorial design, in order."""
    levels = (
        config.tasks,
        config.label_noises,
        config.optimizers,
        config.rate_factors,
        config.batch_sizes,
        config.widths,
        config.decay_factors,
    )
    return [Cell(*values) for values in itertools.product(*levels)]


def all_groups(config: Any) -> list[Group]:
    """The cells by task, noise, optimizer, batch size and width."""
    found: dict[Any, dict[int, Cell]] = {}
    for number, cell in enumerate(all_cells(config)):
        shared = cell._replace(rate_factor=0, decay_factor=0)
        found.setdefault(shared, {})[number] = cell
    return [Group(i, cells) for i, cells in enumerate(found.values())]
