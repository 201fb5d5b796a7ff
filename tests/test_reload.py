"""The proof that a checkpoint is what was trained: dtypes that differ, no room for a second model, own code."""

import logging
from contextlib import nullcontext

import pytest
import torch

from normbt import reload
from normbt.errors import ModelError
from normbt.reload import check_reload
from tiny import padded, random_rows, tiny_model

INPUTS = padded(random_rows([5, 9, 6, 7]))


def rewards_of(model) -> torch.Tensor:
    """Rewards with the head in float32, as the trainer runs it."""
    with torch.no_grad():
        hidden = model.model(**INPUTS).last_hidden_state
    last = INPUTS["attention_mask"].sum(dim=1) - 1
    return (hidden[torch.arange(len(last)), last].float() @ model.score.weight.detach().float().T).squeeze(-1)


@pytest.fixture
def mixed():
    """A backbone in bfloat16 under a head in float32."""
    model = tiny_model("llama").to(torch.bfloat16)
    model.score.float().weight.data.mul_(1.0 + 2.0**-12)  # which bfloat16 cannot hold
    return model


def test_a_head_of_another_dtype_than_the_backbone_is_recognised(mixed, tmp_path):
    mixed.save_pretrained(tmp_path)
    check_reload(tmp_path, mixed, INPUTS, rewards_of(mixed), autocast=nullcontext)
    with torch.no_grad():
        mixed.score.weight[0, 3] += 0.1
    with pytest.raises(ModelError, match=r"another score\.weight"):
        check_reload(tmp_path, mixed, INPUTS, rewards_of(mixed), autocast=nullcontext)


def test_no_room_for_a_second_model_leaves_the_head_compared(tmp_path, monkeypatch, caplog):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)

    class Large(reload.AutoModelForSequenceClassification):
        """Loads on the CPU, and does not fit anywhere else."""

        @classmethod
        def from_pretrained(cls, *args, **options):
            loaded, information = super().from_pretrained(*args, **options)
            loaded.to = no_room
            return loaded, information

    def no_room(device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB; 1 GiB is free.\nmore")

    monkeypatch.setattr(reload, "AutoModelForSequenceClassification", Large)
    with caplog.at_level(logging.WARNING):
        check_reload(tmp_path, model, INPUTS, rewards_of(model), autocast=nullcontext)
    assert "the scores were not" in caplog.text
    assert "1 GiB is free" in caplog.text
    assert "more" not in caplog.text
    with torch.no_grad():
        model.score.weight += 0.1
    with pytest.raises(ModelError, match="head was lost"):
        check_reload(tmp_path, model, INPUTS, rewards_of(model), autocast=nullcontext)
