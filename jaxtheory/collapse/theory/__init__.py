"""What collapse theory predicts: optima of models whose features are free.

Everything here is solved on the host in float64, whatever JAX's default precision is,
unless a docstring says otherwise. Nothing here is meant to be traced.
"""

from jaxtheory.collapse.theory._closed_forms import (
    balanced_optimum as balanced_optimum,
)
from jaxtheory.collapse.theory._closed_forms import (
    minority_collapse_threshold as minority_collapse_threshold,
)
from jaxtheory.collapse.theory._closed_forms import (
    squared_error_optimum as squared_error_optimum,
)
from jaxtheory.collapse.theory._gap import OptimalityGap as OptimalityGap
from jaxtheory.collapse.theory._gap import optimality_gap as optimality_gap
from jaxtheory.collapse.theory._layer_peeled import LayerPeeledModel as LayerPeeledModel
from jaxtheory.collapse.theory._layer_peeled import layer_peeled as layer_peeled
from jaxtheory.collapse.theory._layer_peeled import (
    layer_peeled_threshold as layer_peeled_threshold,
)
from jaxtheory.collapse.theory._multilabel import (
    PickAllLabelOptimum as PickAllLabelOptimum,
)
from jaxtheory.collapse.theory._multilabel import (
    pick_all_label_optimum as pick_all_label_optimum,
)
from jaxtheory.collapse.theory._optimum import Optimum as Optimum
from jaxtheory.collapse.theory._predicted import (
    GeometryDistance as GeometryDistance,
)
from jaxtheory.collapse.theory._predicted import (
    PredictedGeometry as PredictedGeometry,
)
from jaxtheory.collapse.theory._predicted import (
    geometry_distance as geometry_distance,
)
from jaxtheory.collapse.theory._predicted import (
    predicted_geometry as predicted_geometry,
)
from jaxtheory.collapse.theory._regression import RegressionOptimum as RegressionOptimum
from jaxtheory.collapse.theory._regression import (
    regression_optimum as regression_optimum,
)
from jaxtheory.collapse.theory._saddle import StrictSaddle as StrictSaddle
from jaxtheory.collapse.theory._saddle import strict_saddle as strict_saddle
from jaxtheory.collapse.theory._seli import Geometry as Geometry
from jaxtheory.collapse.theory._seli import (
    general_orthogonal_frame as general_orthogonal_frame,
)
from jaxtheory.collapse.theory._seli import (
    simplex_encoded_labels as simplex_encoded_labels,
)
from jaxtheory.collapse.theory._seli import simplex_frame as simplex_frame
from jaxtheory.collapse.theory._softmax_codes import SoftmaxCode as SoftmaxCode
from jaxtheory.collapse.theory._softmax_codes import softmax_code as softmax_code
from jaxtheory.collapse.theory._softmax_codes import (
    softmax_code_margin as softmax_code_margin,
)
from jaxtheory.collapse.theory._unconstrained import (
    UnconstrainedFeatures as UnconstrainedFeatures,
)
from jaxtheory.collapse.theory._unconstrained import (
    unconstrained_features as unconstrained_features,
)
