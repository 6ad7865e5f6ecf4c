"""Smaller networks: what is left out, and the error that it makes."""

from jaxtheory.compression._nodes import PrunedNodes as PrunedNodes
from jaxtheory.compression._nodes import prune_nodes as prune_nodes
from jaxtheory.compression._prune import Pruned as Pruned
from jaxtheory.compression._prune import prune_magnitude as prune_magnitude
from jaxtheory.compression._prune import prune_svd as prune_svd
