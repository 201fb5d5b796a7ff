"""Pairs and models that the tests of gradient norms share."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tiny import padded, random_rows, tiny_model

CHOSEN, REJECTED = random_rows([9, 6, 12, 5], seed=1), random_rows([7, 11, 4, 5], seed=2)
CHOSEN[2][:7] = REJECTED[1][:7]
NEAR = [*CHOSEN[2][:5], CHOSEN[2][5] % 50 + 6, *CHOSEN[2][6:]]  # one word of twelve replaced
PAIRS = [*zip(CHOSEN, REJECTED, strict=True), (CHOSEN[2], NEAR)]
"""Pairs of equal and different lengths, and one near-duplicate, in which most of the gradient cancels."""

shared_model = cache(lambda kind: tiny_model(kind).double())
"""Models that tests only read."""


def batch_of(pairs: Sequence[tuple[list[int], list[int]]] = PAIRS, *, side: str = "right") -> dict[str, Tensor]:
    return padded([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs], side=side)


def lora_model(kind: str = "llama", **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    fields = {"r": 4, "init_lora_weights": False, "task_type": "SEQ_CLS", "target_modules": "all-linear"}
    return get_peft_model(tiny_model(kind), LoraConfig(**(fields | settings))).double().eval()
