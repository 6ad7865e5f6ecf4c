"""Neural collapse: class statistics and the layer-wise law of separation."""

from jaxtheory.collapse import theory as theory
from jaxtheory.collapse._imbalance import FrameDistances as FrameDistances
from jaxtheory.collapse._imbalance import ImbalanceStatistics as ImbalanceStatistics
from jaxtheory.collapse._imbalance import imbalance as imbalance
from jaxtheory.collapse._separation import SeparationLaw as SeparationLaw
from jaxtheory.collapse._separation import fit_separation_law as fit_separation_law
from jaxtheory.collapse._separation import separation as separation
from jaxtheory.collapse._separation import separation_law as separation_law
from jaxtheory.collapse._statistics import CollapseStatistics as CollapseStatistics
from jaxtheory.collapse._statistics import statistics as statistics
