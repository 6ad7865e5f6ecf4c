"""Flax models whose every layer can be read."""

from jaxtheory.models._heads import FixedClassifier as FixedClassifier
from jaxtheory.models._heads import ProjectionHead as ProjectionHead
from jaxtheory.models._heads import SkipConnection as SkipConnection
from jaxtheory.models._intermediates import intermediates as intermediates
from jaxtheory.models._networks import CNN as CNN
from jaxtheory.models._networks import MLP as MLP
from jaxtheory.models._read import classifier as classifier
from jaxtheory.models._read import features as features
