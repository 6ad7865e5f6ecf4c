"""The portrait of one training run: train, measure, and say what theory expects."""

from jaxtheory.portrait._plan import Config as Config
from jaxtheory.portrait._run import Portrait as Portrait
from jaxtheory.portrait._run import portrait as portrait
