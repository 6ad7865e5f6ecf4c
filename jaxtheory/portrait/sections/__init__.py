"""The sections of the portrait, in the order of the page.

A new measurement is a new file here and a line below.
"""

from jaxtheory.portrait.sections import (
    bounds,
    collapse,
    kernel,
    noise,
    path,
    separation,
    sharpness,
    training,
)

SECTIONS = (
    training.SECTION,
    sharpness.SECTION,
    noise.SECTION,
    kernel.SECTION,
    collapse.SECTION,
    separation.SECTION,
    path.SECTION,
    bounds.SECTION,
)
