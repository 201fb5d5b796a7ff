"""What a run does about NaN and Inf once the host looks: say where they came from, and stop or go on."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import nn
from trl.data_utils import get_dataset_column_names

from normbt.errors import ModelError
from normbt.nonfinite import Findings
from normbt.packing_check import evaluating

logger = logging.getLogger(__name__)

_MOST_SKIPPED_IN_A_ROW = 20
"""A run that has lost so many steps to NaN, one after another, learns nothing any more."""


def of_all_processes(findings: Findings) -> Findings:
    """The findings of every process together; all of them must ask."""
    return findings.joined_by(gather_object([findings]))


def stop_or_go_on(
    findings: Findings, *, skip: bool, look_closer: Callable[[Findings], str], way_back: Callable[[], str]
) -> Findings:
    """Warn of what was found, or end the run with it.

    Args:
        findings: of all processes, since the last look.
        skip: whether the run may go on without the steps that were not taken.
        look_closer: says more about the findings; called before the run is ended.
        way_back: says how to continue afterwards.

    Returns:
        The findings.

    Raises:
        ModelError: there was something, and ``skip`` is false; or no step can be taken any more.
    """
    if not findings:
        return findings
    stuck = findings.skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW
    if skip and not stuck:
        logger.warning("%s%s", findings.describe(), " Those steps were not taken." if findings.steps else "")
        return findings
    reason = f"{findings.skipped_in_a_row} steps in a row could not be taken. " if stuck else ""
    raise ModelError(
        f"{reason}{findings.describe()} {look_closer(findings)} Look at these rows, lower learning_rate or "
        f"max_grad_norm, or train past them with --on_nonfinite skip. {way_back()}"
    )


def look_closer(
    model: nn.Module, dataset: Any, findings: Findings, is_finite: Callable[[Mapping[str, Any]], bool]
) -> str:
    """Whether the parameters are finite, and which of the named pairs are not finite by themselves.

    Args:
        model: whole in this process.
        dataset: the pairs, with the column ``id``.
        findings: what was found.
        is_finite: whether rewards, distance and margin of one pair, run alone, are finite.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        return "The model's parameters are not finite themselves: they were so from the start, or DeepSpeed's step."
    kept = "The parameters are finite: no such step was taken."
    if not findings.pairs or "id" not in (get_dataset_column_names(dataset) or ()):
        return kept
    if isinstance(dataset, IterableDataset):
        return kept
    places = {name: place for place, name in enumerate(dataset["id"]) if name in findings.pairs}
    with evaluating(model):
        alone = [name for name, place in places.items() if not is_finite(dataset[place])]
    if not alone:
        return f"{kept} Run alone, each of these pairs is finite now."
    return f"{kept} Run alone, not finite: {', '.join(alone)}."
