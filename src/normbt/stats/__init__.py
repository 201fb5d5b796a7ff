"""Statistics of accuracies and of their differences: intervals, paired tests, seeds, power. Pure numpy and scipy."""

from normbt.stats.bootstrap import Resampled, ResampledGroups, cluster_bootstrap, resampled_clusters
from normbt.stats.intervals import Interval, percentile_interval, wilson_interval
from normbt.stats.outcomes import TIE_POLICY, PairOutcomes, pair_outcomes
from normbt.stats.paired import PairedT, holm, mcnemar_exact, paired_t, sign_flip_test
from normbt.stats.power import detectable_difference, detectable_from_error, pairs_needed
from normbt.stats.seeds import MethodDifference, hierarchical_resamples, method_difference

__all__ = [
    "TIE_POLICY",
    "Interval",
    "MethodDifference",
    "PairOutcomes",
    "PairedT",
    "Resampled",
    "ResampledGroups",
    "cluster_bootstrap",
    "detectable_difference",
    "detectable_from_error",
    "hierarchical_resamples",
    "holm",
    "mcnemar_exact",
    "method_difference",
    "pair_outcomes",
    "paired_t",
    "pairs_needed",
    "percentile_interval",
    "resampled_clusters",
    "sign_flip_test",
    "wilson_interval",
]
