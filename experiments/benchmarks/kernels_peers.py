"""Environments of the kernel benchmark."""

from experiments.benchmarks import environments
from experiments.benchmarks.environments import ROOT as ROOT
from experiments.benchmarks.environments import LimitError as LimitError
from experiments.benchmarks.environments import Limits as Limits
from experiments.benchmarks.environments import Requirements


class Peer(environments.Peer):
    """A worker process of the kernel benchmark."""

    module = "experiments.benchmarks.kernels_worker"
    # Neural Tangents goes in without its dependencies: it asks for TensorFlow, which
    # nothing here uses.
    requirements = {  # noqa: RUF012
        "NT": Requirements(
            (
                "jax==0.4.25",
                "jaxlib==0.4.25",
                "numpy==1.26.4",
                "scipy==1.12.0",
                "flax==0.8.2",
            ),
            ("neural-tangents==0.6.5", "frozendict==2.5.1"),
        ),
        "torch": Requirements(("torch==2.13.0", "numpy==2.3.5")),
    }
