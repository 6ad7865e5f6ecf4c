"""Implicit regularisation: what an algorithm or an architecture prefers by itself."""

from jaxtheory.dynamics.implicit._central import CentralFlow as CentralFlow
from jaxtheory.dynamics.implicit._central import central_flow as central_flow
from jaxtheory.dynamics.implicit._compare import path_distance as path_distance
from jaxtheory.dynamics.implicit._deep_linear import Balancedness as Balancedness
from jaxtheory.dynamics.implicit._deep_linear import ProductRank as ProductRank
from jaxtheory.dynamics.implicit._deep_linear import balancedness as balancedness
from jaxtheory.dynamics.implicit._deep_linear import product_rank as product_rank
from jaxtheory.dynamics.implicit._diagonal import DiagonalNetwork as DiagonalNetwork
from jaxtheory.dynamics.implicit._diagonal import diagonal_network as diagonal_network
from jaxtheory.dynamics.implicit._diagonal import (
    diagonal_network_penalty as diagonal_network_penalty,
)
from jaxtheory.dynamics.implicit._flows import Flow as Flow
from jaxtheory.dynamics.implicit._flows import flow_distance as flow_distance
from jaxtheory.dynamics.implicit._flows import gradient_flow as gradient_flow
from jaxtheory.dynamics.implicit._flows import modified_flow as modified_flow
from jaxtheory.dynamics.implicit._label_noise import label_noise as label_noise
from jaxtheory.dynamics.implicit._label_noise_drift import (
    LabelNoiseDrift as LabelNoiseDrift,
)
from jaxtheory.dynamics.implicit._label_noise_drift import (
    label_noise_drift as label_noise_drift,
)
from jaxtheory.dynamics.implicit._label_noise_drift import (
    label_noise_regulariser as label_noise_regulariser,
)
from jaxtheory.dynamics.implicit._margin import MaxMargin as MaxMargin
from jaxtheory.dynamics.implicit._margin import max_margin as max_margin
