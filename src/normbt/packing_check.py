"""Prove packed pairs on the model at hand: the hidden states of separate sequences, and nothing leaking across."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normbt.attention import pair_attention
from normbt.head import capture_hidden
from normbt.packing import TokenPair, build_packed, build_padded, common_prefix

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Relative error of a hidden state that rounding alone may cause, by the dtype the layers compute in."""
_PADDING_MULTIPLE = 4


@dataclass(frozen=True)
class PackingCheck:
    """How far packed pairs are from what they stand for; all numbers are ``|h - h'| / |h'|``, the largest of any row.

    Attributes:
        difference: packed against each sequence alone.
        padding_difference: padded rows against each sequence alone, for scale: rounding and nothing else.
        leak: change of one answer's row when only the other answer's tokens change.
        tolerance: what ``difference`` and ``leak`` may be at most.
    """

    difference: float
    padding_difference: float
    leak: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether packing is exact up to rounding; a NaN does not pass."""
        return self.difference <= self.tolerance and self.leak <= self.tolerance

    def summary(self) -> str:
        """One sentence for a log."""
        verdict = "agree with" if self.passed else "DIFFER FROM"
        return (
            f"packed pairs {verdict} separate sequences: difference {self.difference:.1e}, leak between answers "
            f"{self.leak:.1e}, tolerance {self.tolerance:.1e} (padding: {self.padding_difference:.1e})."
        )


def check_packing(
    model: nn.Module, pairs: Sequence[TokenPair], *, share: bool = True, dtype: torch.dtype = torch.float32
) -> PackingCheck:
    """Compare a packed batch with its sequences one by one, and change each answer to see that the other stays.

    Args:
        model: a reward model for which :func:`normbt.attention.packing_obstacle` is ``None``.
        pairs: a few pairs, better of different lengths; each costs two forwards.
        share: as in :func:`normbt.packing.build_packed`.
        dtype: what the layers compute in; under autocast that is not the dtype of the parameters.

    Returns:
        The differences. Nothing is raised when they are too large: see ``passed``.
    """
    chosen_changed = [_changed(model, pair, chosen=True) for pair in pairs]
    rejected_changed = [_changed(model, pair, chosen=False) for pair in pairs]
    sequences = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    with evaluating(model):
        separate = torch.cat([_rows(model, _alone(ids)) for ids in sequences])
        padded = _rows(model, build_padded(pairs, pad_token_id=0).inputs)
        with pair_attention(model, pooled_only=True):
            packed = _rows(model, build_packed(pairs, share=share).inputs)
            other_chosen = _rows(model, build_packed(chosen_changed, share=share).inputs)
            other_rejected = _rows(model, build_packed(rejected_changed, share=share).inputs)
    unchanged = torch.cat([other_rejected[: len(pairs)], other_chosen[len(pairs) :]])
    padding_difference = _relative_difference(padded, separate)
    return PackingCheck(
        difference=_relative_difference(packed, separate),
        padding_difference=padding_difference,
        leak=_relative_difference(unchanged, packed),
        tolerance=max(_ROUNDING[dtype], _PADDING_MULTIPLE * padding_difference),
    )


def made_up_pairs(model: nn.Module, *, count: int = 4, seed: int = 0) -> list[TokenPair]:
    """Pairs of random tokens of different lengths, for a check where no data are at hand.

    Args:
        model: gives the vocabulary.
        count: how many pairs.
        seed: of the tokens.

    Returns:
        Pairs with prefixes of 4, 8, 12, ... tokens and answers of unequal length.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator] - a Transformers model

    def tokens(length: int) -> list[int]:
        return torch.randint(vocabulary, (length,), generator=generator).tolist()

    pairs = []
    for number in range(1, count + 1):
        prefix, chosen, rejected = tokens(4 * number), tokens(3 + number), tokens(2 + 5 * number)
        pair = (prefix + chosen, prefix + rejected)
        pairs.append(TokenPair(*pair, common_prefix(*pair)))
    return pairs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _rows(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    device = next(model.parameters()).device
    with capture_hidden(model) as captured:
        model(**{name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()})
    return captured.hidden.double()


def _alone(ids: Sequence[int]) -> dict[str, Any]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def _changed(model: nn.Module, pair: TokenPair, *, chosen: bool) -> TokenPair:
    """The pair with other tokens in one answer, everything else as it was."""
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator] - a Transformers model
    ids = list(pair.chosen_ids if chosen else pair.rejected_ids)
    shared = min(pair.prefix_length, len(pair.chosen_ids) - 1, len(pair.rejected_ids) - 1)
    ids[shared:] = [(token + 1) % vocabulary for token in ids[shared:]]
    return pair._replace(prefix_length=shared, **{"chosen_ids" if chosen else "rejected_ids": ids})


def _relative_difference(rows: Tensor, reference: Tensor) -> float:
    return float(((rows - reference).norm(dim=-1) / reference.norm(dim=-1)).max())
