"""Pictures of results: each function draws into axes and returns them.

Figures of its own it draws in its own style; for yours,
``matplotlib.pyplot.rcParams.update(plot.STYLE)``.
"""

from jaxtheory.plot._bounds import bounds as bounds
from jaxtheory.plot._class_means import class_mean_cosines as class_mean_cosines
from jaxtheory.plot._class_means import simplex_plane as simplex_plane
from jaxtheory.plot._collapse import collapse_curves as collapse_curves
from jaxtheory.plot._comparison import comparison as comparison
from jaxtheory.plot._compression import compression as compression
from jaxtheory.plot._curvature import log_spectral_density as log_spectral_density
from jaxtheory.plot._curvature import sharpness as sharpness
from jaxtheory.plot._curvature import spectral_density as spectral_density
from jaxtheory.plot._dynamics import hill as hill
from jaxtheory.plot._dynamics import noise_scale as noise_scale
from jaxtheory.plot._dynamics import tail_index as tail_index
from jaxtheory.plot._dynamics import weight_spectrum as weight_spectrum
from jaxtheory.plot._kernel import kernel_evolution as kernel_evolution
from jaxtheory.plot._kernel import kernel_spectrum as kernel_spectrum
from jaxtheory.plot._landscape import slice_1d as slice_1d
from jaxtheory.plot._landscape import slice_2d as slice_2d
from jaxtheory.plot._learning_curves import learning_curves as learning_curves
from jaxtheory.plot._separation import layer_line as layer_line
from jaxtheory.plot._separation import separation_law as separation_law
from jaxtheory.plot._style import ACCENT as ACCENT
from jaxtheory.plot._style import KERNEL as KERNEL
from jaxtheory.plot._style import NULL as NULL
from jaxtheory.plot._style import STYLE as STYLE
from jaxtheory.plot._style import TEST as TEST
from jaxtheory.plot._style import THEORY as THEORY
from jaxtheory.plot._style import TRAIN as TRAIN
from jaxtheory.plot._topology import lifetimes as lifetimes
