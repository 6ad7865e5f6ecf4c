"""Geometry of a training path: distances, trees, dimensions, beside null models."""

from jaxtheory.dynamics.topology._path import displacement as displacement
from jaxtheory.dynamics.topology._path import path_length as path_length
from jaxtheory.dynamics.topology._topology import path_topology as path_topology
from jaxtheory.dynamics.topology._topology import (
    persistent_homology_dimension as persistent_homology_dimension,
)
from jaxtheory.dynamics.topology._tree import e_alpha as e_alpha
from jaxtheory.dynamics.topology._tree import (
    minimum_spanning_tree as minimum_spanning_tree,
)
from jaxtheory.dynamics.topology._tree import pairwise_distances as pairwise_distances
