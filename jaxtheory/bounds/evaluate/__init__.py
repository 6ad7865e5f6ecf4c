"""How well measures of generalization rank networks by their gap.

Host functions in NumPy float64 over a population of networks. Tables are ``[c, s]``:
cells (choices of hyperparameters) by seeds, NaN where a network failed or a cell has
fewer seeds; hyperparameters are ``[c]``, numbers or words.
"""

from jaxtheory.bounds.evaluate._chance import Bootstrap as Bootstrap
from jaxtheory.bounds.evaluate._chance import NoiseCeiling as NoiseCeiling
from jaxtheory.bounds.evaluate._chance import PermutationBand as PermutationBand
from jaxtheory.bounds.evaluate._chance import bootstrap as bootstrap
from jaxtheory.bounds.evaluate._chance import noise_ceiling as noise_ceiling
from jaxtheory.bounds.evaluate._chance import permutation_band as permutation_band
from jaxtheory.bounds.evaluate._evaluate import Evaluation as Evaluation
from jaxtheory.bounds.evaluate._evaluate import evaluate as evaluate
from jaxtheory.bounds.evaluate._information import (
    ConditionalInformation as ConditionalInformation,
)
from jaxtheory.bounds.evaluate._information import (
    conditional_mutual_information as conditional_mutual_information,
)
from jaxtheory.bounds.evaluate._kendall import Granulated as Granulated
from jaxtheory.bounds.evaluate._kendall import Kendall as Kendall
from jaxtheory.bounds.evaluate._kendall import granulated_kendall as granulated_kendall
from jaxtheory.bounds.evaluate._kendall import kendall as kendall
from jaxtheory.bounds.evaluate._ledger_csv import Ledger as Ledger
from jaxtheory.bounds.evaluate._ledger_csv import from_csv as from_csv
from jaxtheory.bounds.evaluate._ledger_csv import to_csv as to_csv
from jaxtheory.bounds.evaluate._pairs import PairSums as PairSums
from jaxtheory.bounds.evaluate._pairs import cell_means as cell_means
from jaxtheory.bounds.evaluate._pairs import differ_in_one as differ_in_one
from jaxtheory.bounds.evaluate._pairs import pair_sums as pair_sums
from jaxtheory.bounds.evaluate._pairs import resampled_tau as resampled_tau
from jaxtheory.bounds.evaluate._pairs import signs as signs
from jaxtheory.bounds.evaluate._pairs import tau_b as tau_b
from jaxtheory.bounds.evaluate._partial import PartialCorrelation as PartialCorrelation
from jaxtheory.bounds.evaluate._partial import (
    partial_correlation as partial_correlation,
)
from jaxtheory.bounds.evaluate._partial import partial_tau as partial_tau
from jaxtheory.bounds.evaluate._sign_error import SignError as SignError
from jaxtheory.bounds.evaluate._sign_error import robust_sign_error as robust_sign_error
from jaxtheory.bounds.evaluate._text import to_text as to_text
from jaxtheory.bounds.evaluate._variance import (
    VarianceDecomposition as VarianceDecomposition,
)
from jaxtheory.bounds.evaluate._variance import (
    variance_decomposition as variance_decomposition,
)
