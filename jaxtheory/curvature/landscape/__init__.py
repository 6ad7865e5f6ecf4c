"""The loss around a network, between networks, and along the path of training."""

from jaxtheory.curvature.landscape._axes import permute_units as permute_units
from jaxtheory.curvature.landscape._axes import sequential_axes as sequential_axes
from jaxtheory.curvature.landscape._bezier import BezierCurve as BezierCurve
from jaxtheory.curvature.landscape._bezier import bezier_curve as bezier_curve
from jaxtheory.curvature.landscape._bezier import bezier_point as bezier_point
from jaxtheory.curvature.landscape._directions import (
    filter_normalised as filter_normalised,
)
from jaxtheory.curvature.landscape._interpolate import Interpolation as Interpolation
from jaxtheory.curvature.landscape._interpolate import interpolate as interpolate
from jaxtheory.curvature.landscape._matching import Matching as Matching
from jaxtheory.curvature.landscape._matching import match_weights as match_weights
from jaxtheory.curvature.landscape._slice import Slice1D as Slice1D
from jaxtheory.curvature.landscape._slice import Slice2D as Slice2D
from jaxtheory.curvature.landscape._slice import slice_1d as slice_1d
from jaxtheory.curvature.landscape._slice import slice_2d as slice_2d
from jaxtheory.curvature.landscape._trajectory import Projection as Projection
from jaxtheory.curvature.landscape._trajectory import TrajectoryPlane as TrajectoryPlane
from jaxtheory.curvature.landscape._trajectory import project as project
from jaxtheory.curvature.landscape._trajectory import (
    random_walk_variance as random_walk_variance,
)
from jaxtheory.curvature.landscape._trajectory import (
    trajectory_plane as trajectory_plane,
)
