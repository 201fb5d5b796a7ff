"""The fast method: one forward and one backward for all pairs, and no gradient of a matrix kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normbt.gradients.measuring import measuring
from normbt.gradients.pair_inputs import PairInputs
from normbt.gradients.refusal import GhostRefusal
from normbt.gradients.tally import Tally
from normbt.gradients.token_places import token_places
from normbt.gradients.uses import ParameterUses, remaining_uses
from normbt.head import HeadCapture


def ghost_squares(capture: HeadCapture, batch: PairInputs, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Squared norm of the gradient of ``r_chosen - r_rejected`` by each parameter, for each pair.

    Tokens of different pairs do not meet in the model, so one backward of the sum of all differences leaves, at the
    output of every operation, the gradient of each pair's own difference.

    Args:
        capture: the reward model with its head found.
        batch: the pairs.
        parameters: what to differentiate by, by name.

    Returns:
        Shape ``(parameters, pairs)``, float64, on the CPU.

    Raises:
        GhostRefusal: a parameter is used in a way whose norm is not known here; it is named.
    """
    if batch.pairs > 1 and any(2 * batch.pairs in value.shape[1:] for value in batch.tensors()):
        # Sequences and tokens are told apart by their numbers.
        parts = (batch.first(batch.pairs - 1), batch.last(1))
        return torch.cat([ghost_squares(capture, part, parameters) for part in parts], dim=1)
    watched = list(parameters.values())
    names = list(parameters)
    device = next(capture.model.parameters()).device
    with measuring(capture.model, watched), capture.installed() as captured:
        tally = Tally(names, token_places(batch, device), device)
        with ParameterUses(watched, tally) as uses:
            capture.model(**batch.inputs)
        chosen, rejected = captured.rewards.chunk(2)
        lead = chosen.sum() - rejected.sum()
        for number, operation in remaining_uses(lead, watched):
            raise GhostRefusal(
                f"{names[number]} is used in {operation}, whose per-pair norm is not known.",
                "Use method='exact', or leave the parameter out with a predicate.",
            )
        if uses.leaves:
            with _no_module_running(capture.model), torch.autocast(device.type, enabled=False):
                torch.autograd.grad(lead, uses.leaves, allow_unused=True)
        return tally.finish().cpu().double()


@contextmanager
def _no_module_running(model: nn.Module) -> Iterator[None]:
    """Refuse activation checkpointing, which runs modules in the backward, where their parameters are not watched."""

    def refuse(module: nn.Module, args: Any) -> None:
        raise GhostRefusal(
            f"a {type(module).__name__} was run again in the backward (activation checkpointing), where the ghost "
            "method can't follow.",
            "Switch that off, or use method='exact'.",
        )

    hooks = [module.register_forward_pre_hook(refuse) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
