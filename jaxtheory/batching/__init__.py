"""Sums and maps over examples, checks of models and data, leaves chosen by path."""

from jaxtheory.batching._checks import check_batch_size as check_batch_size
from jaxtheory.batching._checks import check_count as check_count
from jaxtheory.batching._checks import check_examples as check_examples
from jaxtheory.batching._checks import check_function as check_function
from jaxtheory.batching._checks import check_key as check_key
from jaxtheory.batching._checks import check_number as check_number
from jaxtheory.batching._checks import check_pair as check_pair
from jaxtheory.batching._checks import check_params as check_params
from jaxtheory.batching._checks import check_word as check_word
from jaxtheory.batching._loops import map_examples as map_examples
from jaxtheory.batching._loops import num_shards as num_shards
from jaxtheory.batching._loops import sum_examples as sum_examples
from jaxtheory.batching._model import ModelCheck as ModelCheck
from jaxtheory.batching._model import check_model as check_model
from jaxtheory.batching._problem import check_losses as check_losses
from jaxtheory.batching._problem import check_problem as check_problem
from jaxtheory.batching._problem import example_losses as example_losses
from jaxtheory.batching._select import SelectFn as SelectFn
from jaxtheory.batching._select import insert_leaves as insert_leaves
from jaxtheory.batching._select import select_leaves as select_leaves
