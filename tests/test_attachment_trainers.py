"""Attached models under transformers.Trainer and trl.RewardTrainer get the gradients of the explicit NormBT loss."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from tiny import tiny_model

pytest.importorskip("trl")

from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import RewardConfig, RewardTrainer

from normbt import attach, bt_loss, capture_hidden, pair_distance, pair_weights
from normbt.config import NormBTConfig
from normbt.errors import ConfigError, ModelError
from normbt.trainer import NormBTTrainer
from test_attachment import assert_same_gradients, batches, gradients, with_lora
from test_trainer import settings, word_pairs, word_tokenizer

MU = 4.0
STEPS = 3


class Recorder(TrainerCallback):
    """The gradients of every optimizer step, and the parameters they were taken at."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.parameters: list[dict] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(gradients(model))
        self.parameters.append({name: value.detach().clone() for name, value in model.named_parameters()})


class PlainTrainer(Trainer):
    """A user's own trainer: plain Bradley-Terry on rows in halves."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        loss = -logsigmoid(chosen - rejected).mean()
        return loss / self.args.gradient_accumulation_steps


class ExplicitTrainer(Trainer):
    """The same with NormBT in its loss; mu moves once per optimizer step."""

    mu = torch.tensor(MU)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with capture_hidden(model) as captured:
            chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        distance = pair_distance(*captured.hidden.chunk(2))
        self.distances = [*getattr(self, "distances", []), distance]
        loss = (pair_weights(distance, self.mu) * bt_loss(chosen, rejected)).mean()
        if len(self.distances) == self.args.gradient_accumulation_steps:
            self.mu = 0.9 * self.mu + 0.1 * torch.cat(self.distances).mean()
            self.distances = []
        return loss / self.args.gradient_accumulation_steps


def arguments(folder, **changes):
    common = settings(folder, max_steps=STEPS, per_device_train_batch_size=1, remove_unused_columns=False)
    return common | {"learning_rate": 0.0} | changes  # the same parameters at every step, whoever makes it


def model_for(lora: bool):
    torch.manual_seed(0)
    model = tiny_model("llama")
    return with_lora(model) if lora else model


@pytest.mark.parametrize(
    ("accumulation", "changes"),
    [(1, {}), (2, {}), (2, {"bf16": True}), (2, {"reentrant": True}), (2, {"reentrant": False})],
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_transformers_trainer(tmp_path, lora, accumulation, changes):
    changes = dict(changes)
    if "reentrant" in changes:
        options = {"use_reentrant": changes.pop("reentrant")}
        changes |= {"activation_checkpointing": True, "activation_checkpointing_kwargs": options}
    recorded = []
    for trainer_class in (PlainTrainer, ExplicitTrainer):
        recorder = Recorder()
        model = model_for(lora)
        trainer = trainer_class(
            model,
            TrainingArguments(**arguments(tmp_path, gradient_accumulation_steps=accumulation, **changes)),
            train_dataset=batches(STEPS * accumulation),
            data_collator=lambda rows: rows[0],
            callbacks=[recorder],
        )
        if trainer_class is PlainTrainer:
            normbt = attach(model, mu_init=MU)
        trainer.train()
        recorded.append(recorder)
    assert len(recorded[0].steps) == STEPS
    for ours, explicit in zip(recorded[0].steps, recorded[1].steps, strict=True):
        assert_same_gradients(ours, explicit, bf16_body=changes.get("bf16", False))
    assert normbt.metrics()["mu"] == pytest.approx(float(trainer.mu), rel=1e-5)


@pytest.mark.parametrize(
    ("accumulation", "changes"), [(1, {}), (2, {}), (1, {"activation_checkpointing": True}), (2, {"bf16": True})]
)
def test_trl_reward_trainer(tmp_path, accumulation, changes):
    """TRL's trainer with a handle, beside NormBTTrainer; without accumulation mu starts at the first step's pairs."""
    tokenizer, data = word_tokenizer(), word_pairs(4 * STEPS * accumulation, margin=True)
    common = settings(tmp_path, max_steps=STEPS, gradient_accumulation_steps=accumulation, learning_rate=0.0, **changes)
    recorders = [Recorder(), Recorder()]
    mu_init = MU if accumulation > 1 else None

    model = tiny_model("llama")
    theirs = RewardTrainer(
        model, RewardConfig(**common), train_dataset=data, processing_class=tokenizer, callbacks=[recorders[0]]
    )
    normbt = attach(model, mu_init=mu_init)
    theirs.train()
    ours = NormBTTrainer(
        tiny_model("llama"),
        NormBTConfig(**common, mu_init=mu_init),
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=theirs.data_collator,  # the same micro-batches: bfloat16 rounds others otherwise
        callbacks=[recorders[1]],
    )
    ours.train()
    assert len(recorders[0].steps) == STEPS
    for attached, explicit in zip(recorders[0].steps, recorders[1].steps, strict=True):
        assert_same_gradients(attached, explicit, bf16_body=changes.get("bf16", False))
    assert normbt.metrics()["mu"] == pytest.approx(ours.mu, rel=1e-5)


def test_trls_centering_is_refused_before_the_first_step(tmp_path):
    model = tiny_model("llama")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = RewardConfig(**settings(tmp_path, center_rewards_coefficient=0.01))
    trainer = RewardTrainer(model, config, train_dataset=word_pairs(16), processing_class=word_tokenizer())
    attach(model)
    with pytest.raises(ModelError, match="center_rewards_coefficient"):
        trainer.train()
    assert all(map(torch.equal, before, model.parameters()))


def test_normbttrainer_refuses_an_attached_model(tmp_path):
    model = tiny_model("llama")
    attach(model)
    config = NormBTConfig(**settings(tmp_path))
    with pytest.raises(ConfigError, match="weighted twice"):
        NormBTTrainer(model, config, train_dataset=word_pairs(8), processing_class=word_tokenizer())
