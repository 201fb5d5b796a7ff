"""Metrics of a set of pairs."""

import pytest
import torch

from normbt.metrics import pair_metrics, stack_records, weight_metrics
from normbt.weights import pair_weights


@pytest.mark.parametrize("bound", [0.1, 0.7, 1.0, 3.3, 4.7, 10.0])  # float32 rounds some up, some down, some not
def test_the_clipped_share_counts_the_weights_at_the_bound(bound):
    distance = torch.tensor([1e-3, 0.5 / bound, 2.0 / bound, 100.0])
    weight = pair_weights(distance, 1.0, max_weight=bound)
    assert weight_metrics(distance, weight, max_weight=bound)["clipped_share"] == 0.5
    records = stack_records(distance, distance, distance, weight, distance, distance)
    assert pair_metrics(records, max_weight=bound)["clipped_share"] == 0.5
    assert "clipped_share" not in pair_metrics(records)
