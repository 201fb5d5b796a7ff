"""The Python of the README runs as it stands, given the names it says a reader has."""

import re
from pathlib import Path

import torch

from normbt import bt_loss
from tiny import padded, random_rows, tiny_model

README = Path(__file__).parent.parent / "README.md"
PYTHON = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_plain_loop_trains():
    code, _ = PYTHON
    model = tiny_model("llama").train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batches = [padded(random_rows([5, 7, 6, 9], seed=seed)) for seed in range(2)]
    names = {"model": model, "batches": batches, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec(code, names)
    assert names["loss_fn"].count == len(batches)
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_the_attached_model_is_trained_with_weights():
    _, code = PYTHON
    model = tiny_model("llama").train()
    names = {"model": model}
    exec(code, names)
    rewards = model(**padded(random_rows([5, 7, 6, 9]))).logits.squeeze(-1)
    bt_loss(*rewards.chunk(2)).mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert names["normbt"].metrics()["updates"] == 1
