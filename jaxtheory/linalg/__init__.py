"""Krylov and stochastic estimators over operators on pytrees; knows no networks."""

from jaxtheory.linalg._lanczos import Eigenpairs as Eigenpairs
from jaxtheory.linalg._lanczos import Tridiagonal as Tridiagonal
from jaxtheory.linalg._lanczos import lanczos as lanczos
from jaxtheory.linalg._lanczos import top_eigenpairs as top_eigenpairs
from jaxtheory.linalg._operator import check_vector as check_vector
from jaxtheory.linalg._operator import dimension as dimension
from jaxtheory.linalg._operator import function_operator as function_operator
from jaxtheory.linalg._trace import trace as trace
