"""Bridges from other frameworks to the contracts of jaxtheory."""

from jaxtheory.interop import flax as flax
