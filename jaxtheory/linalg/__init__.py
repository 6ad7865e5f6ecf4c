"""Krylov and stochastic estimators over operators on pytrees; knows no networks."""
