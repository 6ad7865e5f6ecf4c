"""The sections of the portrait, in the order of the page.

A new measurement is a new file here and two lines below.
"""

from jaxtheory.portrait.sections._bounds import SECTION as BOUNDS
from jaxtheory.portrait.sections._class_cosines import SECTION as CLASS_COSINES
from jaxtheory.portrait.sections._collapse import SECTION as COLLAPSE
from jaxtheory.portrait.sections._compression import SECTION as COMPRESSION
from jaxtheory.portrait.sections._kernel import SECTION as KERNEL
from jaxtheory.portrait.sections._kernel_evolution import SECTION as KERNEL_EVOLUTION
from jaxtheory.portrait.sections._kernel_spectrum import SECTION as KERNEL_SPECTRUM
from jaxtheory.portrait.sections._landscape import SECTION as LANDSCAPE
from jaxtheory.portrait.sections._lifetimes import SECTION as LIFETIMES
from jaxtheory.portrait.sections._noise import SECTION as NOISE
from jaxtheory.portrait.sections._path import SECTION as PATH
from jaxtheory.portrait.sections._separation import SECTION as SEPARATION
from jaxtheory.portrait.sections._sharpness import SECTION as SHARPNESS
from jaxtheory.portrait.sections._simplex_plane import SECTION as SIMPLEX_PLANE
from jaxtheory.portrait.sections._spectrum import SECTION as SPECTRUM
from jaxtheory.portrait.sections._tails import SECTION as TAILS
from jaxtheory.portrait.sections._training import SECTION as TRAINING
from jaxtheory.portrait.sections._weights import SECTION as WEIGHTS

SECTIONS = (
    TRAINING,
    SHARPNESS,
    SPECTRUM,
    NOISE,
    TAILS,
    WEIGHTS,
    KERNEL,
    KERNEL_EVOLUTION,
    KERNEL_SPECTRUM,
    COLLAPSE,
    CLASS_COSINES,
    SIMPLEX_PLANE,
    SEPARATION,
    LANDSCAPE,
    PATH,
    LIFETIMES,
    BOUNDS,
    COMPRESSION,
)
