"""Bridges from other frameworks to the contracts of jaxtheory."""
