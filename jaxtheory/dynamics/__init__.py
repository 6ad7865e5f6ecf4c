"""Training dynamics: train and record, populations, store; what trajectories tell."""

from jaxtheory._types import StatefulMeasurement as StatefulMeasurement
from jaxtheory._types import TrainState as TrainState
from jaxtheory.dynamics import implicit as implicit
from jaxtheory.dynamics import inference as inference
from jaxtheory.dynamics import noise as noise
from jaxtheory.dynamics import stability as stability
from jaxtheory.dynamics import tails as tails
from jaxtheory.dynamics import topology as topology
from jaxtheory.dynamics._example_losses import example_losses as example_losses
from jaxtheory.dynamics._gradient_statistics import (
    GradientStatistics as GradientStatistics,
)
from jaxtheory.dynamics._gradient_statistics import (
    gradient_statistics as gradient_statistics,
)
from jaxtheory.dynamics._history import History as History
from jaxtheory.dynamics._join import join_runs as join_runs
from jaxtheory.dynamics._members import init_population as init_population
from jaxtheory.dynamics._model_perturbation import (
    gaussian_model_perturbation as gaussian_model_perturbation,
)
from jaxtheory.dynamics._objective import supervised as supervised
from jaxtheory.dynamics._population import train_population as train_population
from jaxtheory.dynamics._progress import ticking as ticking
from jaxtheory.dynamics._schedule import exponential_steps as exponential_steps
from jaxtheory.dynamics._schedule import log_spaced_steps as log_spaced_steps
from jaxtheory.dynamics._sketch import sketch as sketch
from jaxtheory.dynamics._snapshots import projections as projections
from jaxtheory.dynamics._snapshots import snapshots as snapshots
from jaxtheory.dynamics._store import load as load
from jaxtheory.dynamics._topological_regulariser import (
    TopologicalMemory as TopologicalMemory,
)
from jaxtheory.dynamics._topological_regulariser import (
    TopologicalRegulariser as TopologicalRegulariser,
)
from jaxtheory.dynamics._topological_regulariser import (
    topological_regulariser as topological_regulariser,
)
from jaxtheory.dynamics._train import init as init
from jaxtheory.dynamics._train import train as train
