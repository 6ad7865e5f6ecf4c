"""Training dynamics: train and record, store, noise, dimension of the path."""

from jaxtheory._types import History as History
from jaxtheory._types import StatefulMeasurement as StatefulMeasurement
from jaxtheory._types import TrainState as TrainState
from jaxtheory.dynamics._noise import noise_scale as noise_scale
from jaxtheory.dynamics._noise import two_batch_noise_scale as two_batch_noise_scale
from jaxtheory.dynamics._objective import supervised as supervised
from jaxtheory.dynamics._path import displacement as displacement
from jaxtheory.dynamics._path import path_length as path_length
from jaxtheory.dynamics._progress import ticking as ticking
from jaxtheory.dynamics._sketch import sketch as sketch
from jaxtheory.dynamics._store import load as load
from jaxtheory.dynamics._topology import path_topology as path_topology
from jaxtheory.dynamics._topology import (
    persistent_homology_dimension as persistent_homology_dimension,
)
from jaxtheory.dynamics._train import init as init
from jaxtheory.dynamics._train import train as train
from jaxtheory.dynamics._tree import e_alpha as e_alpha
from jaxtheory.dynamics._tree import minimum_spanning_tree as minimum_spanning_tree
from jaxtheory.dynamics._tree import pairwise_distances as pairwise_distances
