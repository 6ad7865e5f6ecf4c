"""Smaller networks: what is left out, the error that it makes, and the bytes left."""

from jaxtheory.compression._compress import Compressed as Compressed
from jaxtheory.compression._compress import compress as compress
from jaxtheory.compression._file import load_compressed as load_compressed
from jaxtheory.compression._file import save_compressed as save_compressed
from jaxtheory.compression._nodes import PrunedNodes as PrunedNodes
from jaxtheory.compression._nodes import prune_nodes as prune_nodes
from jaxtheory.compression._prune import Pruned as Pruned
from jaxtheory.compression._prune import prune_magnitude as prune_magnitude
from jaxtheory.compression._prune import prune_svd as prune_svd
from jaxtheory.compression._quantise import Codebook as Codebook
from jaxtheory.compression._quantise import Quantised as Quantised
from jaxtheory.compression._quantise import quantise as quantise
from jaxtheory.compression._quantise import restore as restore
from jaxtheory.compression._quantise import straight_through as straight_through
from jaxtheory.compression._subspace import Subspace as Subspace
from jaxtheory.compression._subspace import SubspaceState as SubspaceState
from jaxtheory.compression._subspace import random_subspace as random_subspace
