"""Geometry of a training path: distances, trees, dimensions, beside null models."""

from jaxtheory.dynamics.topology._box import box_dimension as box_dimension
from jaxtheory.dynamics.topology._dimensions import (
    correlation_dimension as correlation_dimension,
)
from jaxtheory.dynamics.topology._dimensions import (
    levina_bickel_dimension as levina_bickel_dimension,
)
from jaxtheory.dynamics.topology._dimensions import two_nn_dimension as two_nn_dimension
from jaxtheory.dynamics.topology._distances import append_point as append_point
from jaxtheory.dynamics.topology._distances import gram_distances as gram_distances
from jaxtheory.dynamics.topology._distances import loss_distances as loss_distances
from jaxtheory.dynamics.topology._distances import (
    pairwise_distances as pairwise_distances,
)
from jaxtheory.dynamics.topology._magnitude import magnitude as magnitude
from jaxtheory.dynamics.topology._measure import measure_path as measure_path
from jaxtheory.dynamics.topology._nulls import (
    ornstein_uhlenbeck as ornstein_uhlenbeck,
)
from jaxtheory.dynamics.topology._nulls import sign_flipped as sign_flipped
from jaxtheory.dynamics.topology._path import displacement as displacement
from jaxtheory.dynamics.topology._path import path_length as path_length
from jaxtheory.dynamics.topology._ph_dimension import (
    persistent_homology_dimension as persistent_homology_dimension,
)
from jaxtheory.dynamics.topology._ph_dimension import (
    ph_dimension_penalty as ph_dimension_penalty,
)
from jaxtheory.dynamics.topology._tree import (
    MinimumSpanningTree as MinimumSpanningTree,
)
from jaxtheory.dynamics.topology._tree import e_alpha as e_alpha
from jaxtheory.dynamics.topology._tree import (
    minimum_spanning_tree as minimum_spanning_tree,
)
