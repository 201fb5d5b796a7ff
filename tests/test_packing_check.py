"""The self-check passes exact packing and catches each way of getting it wrong."""

from typing import Any

import pytest
import torch
from torch import nn

import normbt.attention
from normbt.packing import TokenPair, common_prefix
from normbt.packing_check import PackingCheck, check_packing
from tiny import tiny_model


def pair(chosen: list[int], rejected: list[int]) -> TokenPair:
    return TokenPair(chosen, rejected, common_prefix(chosen, rejected))


PAIRS = [
    pair([5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12]),
    pair([20, 21], [22, 23, 24]),
    pair([30, 31, 32, 33], [30, 31, 32, 33, 34]),
]


def model_of(kind: str = "llama", **settings: Any) -> Any:
    model = tiny_model(kind, **settings)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_exact_packing_passes(kind: str, share: bool) -> None:
    model = model_of(kind).train()
    model.score.eval()  # a module that somebody has frozen
    check = check_packing(model, PAIRS, share=share)
    assert check.passed
    assert check.difference < 1e-5
    assert check.leak < 1e-6
    assert check.tolerance == 1e-4
    assert "agree with" in check.summary()
    assert model.training
    assert not model.score.training


def test_bfloat16_passes_by_its_own_tolerance() -> None:
    check = check_packing(model_of().to(torch.bfloat16), PAIRS, dtype=torch.bfloat16)
    assert check.passed
    assert check.tolerance >= 6e-2


def wrong_alignment(layout: Any, rows: int, columns: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    visible = torch.ones(rows, columns, dtype=torch.bool).tril()
    return torch.zeros(rows, columns).masked_fill(~visible, float("-inf"))


def test_a_mask_aligned_to_the_first_key_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normbt.attention, "_mask", wrong_alignment)
    check = check_packing(model_of(), PAIRS)
    assert not check.passed
    assert "DIFFER" in check.summary()


def test_a_window_that_is_off_by_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = normbt.attention._mask
    monkeypatch.setattr(
        normbt.attention,
        "_mask",
        lambda layout, rows, columns, window, like: right(layout, rows, columns, window + 1, like),
    )
    assert not check_packing(model_of("mistral", sliding_window=3), PAIRS).passed


def test_tokens_of_the_other_answer_in_sight_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a layout is ignored: every token sees the whole row before it."""

    def see_everything(query, key, value, layout, scale, window, softcap):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        ).transpose(1, 2)

    monkeypatch.setattr(normbt.attention, "_attend_segments", see_everything)
    check = check_packing(model_of(), PAIRS)
    assert check.leak > 0.01
    assert check.difference > 0.01


def test_nan_does_not_pass() -> None:
    nan = float("nan")
    assert not PackingCheck(nan, 0.0, 0.0, 1.0).passed
    assert not PackingCheck(0.0, 0.0, nan, 1.0).passed


def test_a_model_that_gives_nan_does_not_pass() -> None:
    model = model_of()
    nn.init.constant_(model.model.norm.weight, float("nan"))
    assert not check_packing(model, PAIRS).passed
