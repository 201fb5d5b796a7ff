"""How the pairs of an optimizer step become micro-batches, and how much memory they may take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import psutil
import torch
from torch import nn

from normbt.attention import packing_obstacle
from normbt.batches import MicroBatch, lay_out
from normbt.batching import arrange, arrange_by_length, plan_step
from normbt.cost import (
    LARGEST_BUDGET,
    LARGEST_CPU_BUDGET,
    DecoderShape,
    decoder_shape,
    numel,
    pair_flops,
    plan_memory,
    training_state_bytes,
)
from normbt.packing import Batching, build_packed, build_padded
from normbt.sharding import UNDIVIDED, Shards


@dataclass(frozen=True)
class StepPlan:
    """The way from the examples of an optimizer step to its micro-batches.

    Attributes:
        batching: ``packed`` (a common prefix once), ``packed-unshared`` (both sequences whole), or ``padded``.
        pad_token_id: fills padded rows.
        pad_to_multiple_of: of padded rows' length; None for no multiple.
        token_budget: most tokens of a micro-batch, padding included; a longer pair is alone.
        shape: of the decoder, for the cost of a pair; None when it can't be read.
        checkpointing: whether activations are recomputed in the backward pass.
        reason: why it came out so, for people.
    """

    batching: Batching
    pad_token_id: int
    pad_to_multiple_of: int | None
    token_budget: int
    shape: DecoderShape | None
    checkpointing: bool
    reason: str

    def micro_batches(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        rank: int = 0,
        ranks: int = 1,
        agree: Callable[[int], int] = int,
    ) -> list[MicroBatch]:
        """Arrange all examples of a step; which pairs belong to the step is not touched.

        Args:
            examples: encoded pairs of the step, at least one: of all processes, or of this one alone.
            rank: which process this is, among those that these pairs are shared out to.
            ranks: how many those are.
            agree: where each process has pairs of its own, from the number of micro-batches that they need here to the
                largest of any process.

        Returns:
            Micro-batches of this process, on the CPU, arranged to the budget and balanced by cost; when padded, with
            pairs of similar length together. Every process gets equally many; where it has no pair left, an uncounted
            one.
        """
        share, padded = self.batching == "packed", self.batching == "padded"
        sizes = [_sizes(example, share) for example in examples]
        multiple = self.pad_to_multiple_of or 1
        tokens = [2 * ceil(max(size) / multiple) * multiple if padded else sum(size) for size in sizes]
        # Without a shape nothing is known of the attention: the tokens stand for the cost.
        costs = [float(pair_flops(self.shape, *size)) for size in sizes] if self.shape else tokens
        how = arrange_by_length if padded else arrange
        plan = plan_step(tokens, costs, token_budget=self.token_budget, ranks=ranks, arrange=how, agree=agree)
        return [
            self.together([examples[i] for i in indices]) if indices else self.together(examples[:1]).uncounted()
            for indices in plan[rank]
        ]

    def together(self, examples: Sequence[Mapping[str, Any]]) -> MicroBatch:
        """One micro-batch of all the examples, in the plan's layout; a packed row never has more tokens than padded."""
        if self.batching == "padded":
            return self.padded(examples)
        return lay_out(examples, partial(build_packed, share=self.batching == "packed"))

    def padded(self, examples: Sequence[Mapping[str, Any]]) -> MicroBatch:
        """One padded micro-batch of the examples, which every model can read."""
        layout = partial(build_padded, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
        return lay_out(examples, layout)

    def falling_back(self, reason: str) -> "StepPlan":
        """The same plan with padded batches, and why."""
        return replace(self, batching="padded", reason=reason)

    def agreed(self, least_of_all: Callable[[Sequence[int]], list[int]]) -> "StepPlan":
        """The plan that every process can follow: each has made one for the memory that it found free.

        Args:
            least_of_all: the least of each number over the processes.

        Returns:
            The least budget, packed where all can pack, with checkpointing where one needs it.
        """
        budget, packs, keeps = least_of_all([self.token_budget, self.batching != "padded", not self.checkpointing])
        plan = replace(self, token_budget=budget, checkpointing=not keeps)
        if not packs and self.batching != "padded":
            plan = replace(plan, batching="padded")
        if plan == self:
            return plan
        state = "off" if keeps else "on"
        common = f"batching {plan.batching}, at most {budget:,} tokens, checkpointing {state}"
        return replace(plan, reason=f"{self.reason}; in common with the other processes: {common}")


def make_step_plan(
    model: nn.Module,
    *,
    device: torch.device | None = None,
    shards: Shards = UNDIVIDED,
    batching: Batching,
    token_budget: int | None,
    checkpointing: bool | None,
    longest_sequence: int | None,
    pairs_per_draw: int,
    arranges: bool = True,
    pad_token_id: int,
    pad_to_multiple_of: int | None,
    low_precision: bool,
) -> StepPlan:
    """Choose layout, token budget and checkpointing for a model on the device it will train on.

    Args:
        model: the reward model, PEFT-wrapped or not.
        device: that it will train on; None for the one it is on.
        shards: over how many processes its parameters and its training state are divided.
        batching: the layout wanted; one that would not be exact for the model becomes ``padded``.
        token_budget: most tokens of a micro-batch; None chooses from the free memory.
        checkpointing: None switches it on only when the estimate doesn't fit into the free memory without it.
        longest_sequence: most tokens of a prompt and answer in the data; None takes the most the model can read.
        pairs_per_draw: pairs that the data loader hands over at once: the micro-batch of a model whose memory can't be
            estimated, or of a collator that builds it.
        arranges: whether the plan makes the micro-batches; False where a user's own collator has made them.
        pad_token_id: fills padded rows.
        pad_to_multiple_of: of padded rows' length.
        low_precision: whether activations are 16-bit.

    Returns:
        The plan; its ``reason`` names what was chosen and why.

    Raises:
        ConfigError: the token budget is not positive.
    """
    device = device or next(model.parameters()).device
    obstacle = packing_obstacle(model, device) if batching != "padded" else None
    reasons = [f"batching {batching}" if obstacle is None else f"batching padded, because {obstacle}"]
    plan = StepPlan(
        batching="padded" if obstacle is not None else batching,
        pad_token_id=pad_token_id,
        pad_to_multiple_of=pad_to_multiple_of,
        token_budget=0,
        shape=None,
        checkpointing=bool(checkpointing),
        reason="",
    )
    config: Any = model.config
    longest = longest_sequence or getattr(config, "max_position_embeddings", None) or LARGEST_BUDGET // 2
    whole_draw = 2 * longest * pairs_per_draw
    try:
        shape = decoder_shape(model)
    except AttributeError as missing:
        # Encoder-decoders and others name their sizes differently; they are never packed.
        budget = token_budget or min(whole_draw, LARGEST_BUDGET)
        reasons.append(f"at most {budget:,} tokens a micro-batch; memory not estimated ({missing})")
        reasons.append(f"checkpointing {'on' if checkpointing else 'off'}")
        return replace(plan, batching="padded", token_budget=budget, reason="; ".join(reasons))
    free = free_bytes(model, device, shards)
    memory = plan_memory(
        shape,
        free_bytes=free,
        longest_pair=2 * longest,
        element_size=2 if low_precision else next(model.parameters()).element_size(),
        token_budget=token_budget if arranges else whole_draw,
        checkpointing=checkpointing,
        largest_budget=LARGEST_CPU_BUDGET if device.type == "cpu" else LARGEST_BUDGET,
    )
    if arranges:
        reasons.append(f"at most {memory.token_budget:,} tokens a micro-batch")
    estimate, available = memory.activation_bytes / 2**30, free / 2**30
    state = "on" if memory.checkpointing else "off"
    reasons.append(f"checkpointing {state}: activations take at most about {estimate:.1f} of {available:.1f} GiB free")
    return replace(
        plan,
        token_budget=memory.token_budget,
        shape=shape,
        checkpointing=memory.checkpointing,
        reason="; ".join(reasons),
    )


def free_bytes(model: nn.Module, device: torch.device | None = None, shards: Shards = UNDIVIDED) -> int:
    """Memory left for activations on a device, once the model, its gradients and Adam's moments are there.

    Args:
        model: on that device, or still on its way: FSDP and DeepSpeed move it when training starts.
        device: that it will train on; None for the one it is on.
        shards: over how many processes its parameters and its training state are divided.

    Returns:
        Bytes; 0 when the model and the training state alone do not fit.
    """
    parameters = list(model.parameters())
    device = device or parameters[0].device
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        available = torch.cuda.mem_get_info(device)[0] + cached
    else:
        available = psutil.virtual_memory().available
    # Another device of the same type holds a part of a model that is spread over several: that part stays there.
    to_come = sum(numel(each) * each.element_size() for each in parameters if each.device.type != device.type)
    state = training_state_bytes(parameters)
    return max(0, available - to_come // shards.parameters - state // shards.state)


def _sizes(example: Mapping[str, Any], share: bool) -> tuple[int, int, int]:
    """Tokens of prefix, chosen and rejected as they are laid out."""
    chosen, rejected = len(example["chosen_ids"]), len(example["rejected_ids"])
    prefix = min(example["prefix_length"], chosen - 1, rejected - 1) if share else 0
    return prefix, chosen - prefix, rejected - prefix
