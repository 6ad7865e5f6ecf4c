"""Neural collapse: class statistics and the layer-wise law of separation."""

from jaxtheory.collapse import accumulator as accumulator
from jaxtheory.collapse import theory as theory
from jaxtheory.collapse._batches import (
    statistics_from_batches as statistics_from_batches,
)
from jaxtheory.collapse._classifier import OutlierOrthogonality as OutlierOrthogonality
from jaxtheory.collapse._classifier import SquaredErrorSplit as SquaredErrorSplit
from jaxtheory.collapse._classifier import (
    outlier_orthogonality as outlier_orthogonality,
)
from jaxtheory.collapse._classifier import squared_error_split as squared_error_split
from jaxtheory.collapse._depth import effective_depth as effective_depth
from jaxtheory.collapse._depth import suggest_depth as suggest_depth
from jaxtheory.collapse._design import classifier_frame as classifier_frame
from jaxtheory.collapse._design import collapse_penalty as collapse_penalty
from jaxtheory.collapse._drift import LeaveOneOutDrift as LeaveOneOutDrift
from jaxtheory.collapse._drift import leave_one_out_drift as leave_one_out_drift
from jaxtheory.collapse._evidence import LogEvidence as LogEvidence
from jaxtheory.collapse._evidence import log_evidence as log_evidence
from jaxtheory.collapse._few_shot import PairMoments as PairMoments
from jaxtheory.collapse._few_shot import PairwiseErrors as PairwiseErrors
from jaxtheory.collapse._few_shot import pair_moments as pair_moments
from jaxtheory.collapse._few_shot import pairwise_errors as pairwise_errors
from jaxtheory.collapse._fine_tuning import ParameterCount as ParameterCount
from jaxtheory.collapse._fine_tuning import count_parameters as count_parameters
from jaxtheory.collapse._fine_tuning import train_only as train_only
from jaxtheory.collapse._fine_tuning import trainable_mask as trainable_mask
from jaxtheory.collapse._frames import FrameGeometry as FrameGeometry
from jaxtheory.collapse._geometric_complexity import (
    geometric_complexity as geometric_complexity,
)
from jaxtheory.collapse._gram import nc1_ratio_from_gram as nc1_ratio_from_gram
from jaxtheory.collapse._imbalance import FrameDistances as FrameDistances
from jaxtheory.collapse._imbalance import ImbalanceStatistics as ImbalanceStatistics
from jaxtheory.collapse._imbalance import imbalance_statistics as imbalance_statistics
from jaxtheory.collapse._imbalance_design import adjust_logits as adjust_logits
from jaxtheory.collapse._imbalance_design import class_weights as class_weights
from jaxtheory.collapse._imbalance_design import escape_weights as escape_weights
from jaxtheory.collapse._imbalance_design import (
    sampling_probabilities as sampling_probabilities,
)
from jaxtheory.collapse._law import LayerLine as LayerLine
from jaxtheory.collapse._law import RandomDropTest as RandomDropTest
from jaxtheory.collapse._law import fit_layer_line as fit_layer_line
from jaxtheory.collapse._law import random_drop_test as random_drop_test
from jaxtheory.collapse._layers import LayerStatistics as LayerStatistics
from jaxtheory.collapse._layers import layer_statistics as layer_statistics
from jaxtheory.collapse._leep import gaussian_leep as gaussian_leep
from jaxtheory.collapse._leep import leep as leep
from jaxtheory.collapse._local_elasticity import LocalElasticity as LocalElasticity
from jaxtheory.collapse._local_elasticity import (
    LocallyElasticPath as LocallyElasticPath,
)
from jaxtheory.collapse._local_elasticity import (
    elasticity_of_changes as elasticity_of_changes,
)
from jaxtheory.collapse._local_elasticity import local_elasticity as local_elasticity
from jaxtheory.collapse._local_elasticity import (
    locally_elastic_sde as locally_elastic_sde,
)
from jaxtheory.collapse._multilabel import MultiLabelStatistics as MultiLabelStatistics
from jaxtheory.collapse._multilabel import (
    multi_label_statistics as multi_label_statistics,
)
from jaxtheory.collapse._ncti import CollapseTerms as CollapseTerms
from jaxtheory.collapse._ncti import (
    collapse_transferability as collapse_transferability,
)
from jaxtheory.collapse._next_token import next_token_law as next_token_law
from jaxtheory.collapse._next_token import prediction_residual as prediction_residual
from jaxtheory.collapse._ranks import EffectiveRanks as EffectiveRanks
from jaxtheory.collapse._ranks import effective_ranks as effective_ranks
from jaxtheory.collapse._record import CollapseStatistics as CollapseStatistics
from jaxtheory.collapse._regression import RegressionStatistics as RegressionStatistics
from jaxtheory.collapse._regression import (
    regression_statistics as regression_statistics,
)
from jaxtheory.collapse._schrodinger import SchrodingerGap as SchrodingerGap
from jaxtheory.collapse._schrodinger import schrodinger_gap as schrodinger_gap
from jaxtheory.collapse._separation import SeparationLaw as SeparationLaw
from jaxtheory.collapse._separation import fit_separation_law as fit_separation_law
from jaxtheory.collapse._separation import separation as separation
from jaxtheory.collapse._separation import separation_law as separation_law
from jaxtheory.collapse._separation_bootstrap import LawBootstrap as LawBootstrap
from jaxtheory.collapse._separation_bootstrap import (
    bootstrap_separation_law as bootstrap_separation_law,
)
from jaxtheory.collapse._sets import AcrossSets as AcrossSets
from jaxtheory.collapse._sets import SetStatistics as SetStatistics
from jaxtheory.collapse._sets import compare_sets as compare_sets
from jaxtheory.collapse._statistics import statistics as statistics
from jaxtheory.collapse._transfer import LayerChoice as LayerChoice
from jaxtheory.collapse._transfer import TransferScores as TransferScores
from jaxtheory.collapse._transfer import choose_layer as choose_layer
from jaxtheory.collapse._transfer import transfer_scores as transfer_scores
from jaxtheory.collapse._uniformity import frame_geometry as frame_geometry
from jaxtheory.collapse._uniformity import one_vs_rest_margin as one_vs_rest_margin
from jaxtheory.collapse._uniformity import uniformity as uniformity
from jaxtheory.collapse._variability import CDNV as CDNV
from jaxtheory.collapse._variability import cdnv as cdnv
from jaxtheory.collapse._variability import (
    variability_collapse_index as variability_collapse_index,
)
