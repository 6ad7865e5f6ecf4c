"""Class statistics of examples that go by in batches: four pure functions.

An accumulator is a pytree of ``k d + d + 2 k`` numbers that passes through jit, scan,
vmap and over devices::

    acc = accumulator.init(num_classes, dim)
    for features, labels in batches:
        acc = accumulator.update(acc, features, labels)
    summary = accumulator.finalize(acc)
"""

from jaxtheory.collapse._accumulator import ClassAccumulator as ClassAccumulator
from jaxtheory.collapse._accumulator import finalize as finalize
from jaxtheory.collapse._accumulator import init as init
from jaxtheory.collapse._accumulator import merge as merge
from jaxtheory.collapse._accumulator import update as update
