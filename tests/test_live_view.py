"""The live view: right numbers, in the run's log, without moving the run by a bit."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from normbt.errors import ConfigError
from normbt.gradients import pair_gradient_norms
from normbt.live_view import Probe, make_live_view, probe_reference
from normbt.packing import TokenPair, build_padded
from normbt.weights import pair_weights
from tiny import BOS, PAD, tiny_model

pytest.importorskip("trl")

from peft import LoraConfig

from normbt.config import NormBTConfig
from normbt.trainer import NormBTTrainer
from test_trainer import logged, settings, word_pairs, word_tokenizer

SHARES = ["probe_share_near", "probe_share_mid", "probe_share_far"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def run(folder, tokenizer, *, kind="llama", peft=None, eval_dataset=None, dropout=0.0, **changes):
    model = tiny_model(kind, attention_dropout=dropout) if dropout else tiny_model(kind)
    trainer = NormBTTrainer(
        model,
        NormBTConfig(**settings(folder, **changes)),
        train_dataset=word_pairs(40),
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft,
    )
    trainer.train()
    return trainer


def entries(trainer):
    return [entry for entry in trainer.state.log_history if "probe_share_near" in entry]


def token_pairs(count=9, seed=0):
    generator = np.random.default_rng(seed)

    def words(length):
        return [BOS, *generator.integers(5, 60, length).tolist()]

    return [TokenPair(words(generator.integers(2, 7)), words(generator.integers(2, 7)), 1) for _ in range(count)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weighting": "none", "probe_norm": "head", "batching": "padded"},
        {"gradient_accumulation_steps": 2, "logging_steps": 2},
        {"peft": LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], lora_dropout=0.3)},
        {"dropout": 0.3, "batching": "padded"},
        {"activation_checkpointing": True},
        {"kind": "bert"},
    ],
    ids=["packed", "padded-head", "accumulation", "peft", "dropout", "checkpointing", "encoder"],
)
def test_training_is_the_same_to_the_last_bit_with_and_without_a_probe(tmp_path, tokenizer, changes):
    probe_norm = changes.pop("probe_norm", "full")
    without = run(tmp_path / "without", tokenizer, **changes)
    with_probe = run(tmp_path / "with", tokenizer, probe_steps=2, probe_pairs=9, probe_norm=probe_norm, **changes)
    assert [entry["step"] for entry in entries(with_probe)] == [0, 2, 4]
    for (name, one), other in zip(without.model.named_parameters(), with_probe.model.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert one.requires_grad == other.requires_grad
    assert with_probe.model.training == without.model.training
    # The run's own log has the same entries, at the same steps, with the same numbers.
    for name in ("loss", "mean_reward", "accuracy", "num_tokens", "grad_norm"):
        assert logged(with_probe, name) == logged(without, name)
    steps = [
        [entry["step"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (without, with_probe)
    ]
    assert steps[0] == steps[1]


def test_the_numbers_are_those_of_the_formulas():
    model, pairs = tiny_model("llama"), token_pairs()
    norm = pair_gradient_norms(model, build_padded(pairs, pad_token_id=PAD)).double()
    rewards, hidden = [], []
    hook = model.score.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0][0, -1]))
    with torch.no_grad():
        for side in ("chosen_ids", "rejected_ids"):
            rewards.append([model(input_ids=torch.tensor([getattr(pair, side)])).logits.item() for pair in pairs])
    hook.remove()
    chosen, rejected = torch.tensor(rewards, dtype=torch.float64)
    distance = (torch.stack(hidden[:9]) - torch.stack(hidden[9:])).norm(dim=1).double()
    error, order = torch.sigmoid(rejected - chosen), distance.argsort()
    update, weight = error * norm, distance.mean() / distance

    found = Probe(model, pairs, norm="full").measure(
        lambda one, other: pair_weights((one - other).norm(dim=1), distance.mean(), eps=1e-6, max_weight=None)
    )
    for place, name in enumerate(("near", "mid", "far")):
        members = order[3 * place : 3 * place + 3]
        expected = {
            f"probe_share_{name}": update[members].sum() / update.sum(),
            f"probe_weighted_share_{name}": (weight * update)[members].sum() / (weight * update).sum(),
            f"probe_accuracy_{name}": (chosen > rejected)[members].double().mean(),
        }
        assert {key: found[key] for key in expected} == pytest.approx(
            {key: float(value) for key, value in expected.items()}, abs=1e-4
        )
    right = chosen > rejected
    assert found["probe_misranked"] == float((~right).sum())
    assert found["probe_quiet_mistakes"] == float((update[~right] < np.median(update[right])).sum())
    assert found["probe_pearson"] == pytest.approx(np.corrcoef(distance, norm)[0, 1], abs=1e-4)
    assert found["probe_distance"] == pytest.approx(float(distance.mean()), abs=1e-4)
    assert found["probe_error"] == pytest.approx(float(error.mean()), abs=1e-4)
    assert found["probe_effective_pairs"] == pytest.approx(float(update.sum() ** 2 / update.square().sum()), abs=1e-3)
    assert found["probe_non_finite"] == 0

    head = Probe(model, pairs, norm="head").measure()
    first = (error * distance)[order[:3]].sum() / (error * distance).sum()
    assert head["probe_share_near"] == pytest.approx(float(first), abs=1e-4)
    assert not [name for name in head if "pearson" in name or "weighted" in name]


def test_numbers_that_do_not_exist_are_left_out():
    model, pairs = tiny_model("llama"), token_pairs()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    assert Probe(model, pairs, norm="head").measure() == {
        "probe_non_finite": 9.0,
        "probe_misranked": 0.0,
        "probe_quiet_mistakes": 0.0,
    }


@pytest.mark.parametrize(
    ("weighting", "mu", "reference"), [("normbt", 4.0, 4.0), ("normbt", None, 2.0), ("batch", 4.0, 2.0)]
)
def test_the_probe_stands_in_for_the_batch_and_for_a_mu_that_is_not_there_yet(weighting, mu, reference):
    assert probe_reference(torch.tensor([1.0, math.inf, 3.0]), weighting, mu) == reference


def test_shares_are_logged_under_bt_and_under_the_runs_weighting(tmp_path, tokenizer):
    trainer = run(tmp_path, tokenizer, probe_steps=5, probe_pairs=12)
    first, last = entries(trainer)
    assert (first["step"], last["step"]) == (0, 5)
    assert first["probe_distance"] != last["probe_distance"]
    for prefix in ("probe_share_", "probe_weighted_share_"):
        assert sum(first[f"{prefix}{name}"] for name in ("near", "mid", "far")) == pytest.approx(1.0)
    assert first["probe_weighted_share_near"] > first["probe_share_near"]
    plain = run(tmp_path / "plain", tokenizer, probe_steps=5, probe_pairs=12, weighting="none")
    assert not [name for name in entries(plain)[0] if name.startswith("probe_weighted")]


def test_a_resumed_run_logs_its_start_once(tmp_path, tokenizer):
    run(tmp_path, tokenizer, probe_steps=2, probe_pairs=6, save_strategy="steps", save_steps=3)
    trainer = NormBTTrainer(
        tiny_model("llama"),
        NormBTConfig(**settings(tmp_path, probe_steps=2, probe_pairs=6)),
        train_dataset=word_pairs(40),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in entries(trainer)] == [0, 2, 4]


def test_the_probe_is_of_the_evaluation_set_where_there_is_one(tmp_path, tokenizer, caplog):
    caplog.set_level(logging.INFO, "normbt")
    run(tmp_path, tokenizer, probe_steps=5, probe_pairs=6, max_steps=1)
    assert "The probe is 6 of the 40 pairs of the training set, drawn with seed 3" in caplog.text
    held_out = word_pairs(10, seed=1)
    run(tmp_path, tokenizer, probe_steps=5, probe_pairs=6, max_steps=1, eval_dataset=held_out)
    assert "The probe is 6 of the 10 pairs of the evaluation set" in caplog.text
    run(tmp_path, tokenizer, probe_steps=5, probe_pairs=20, max_steps=1, eval_dataset={"a": held_out, "b": held_out})
    assert "The probe is 10 of the 10 pairs of the evaluation ('a') set" in caplog.text


def test_a_stream_alone_is_refused(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="the data are a stream"):
        NormBTTrainer(
            tiny_model("llama"),
            NormBTConfig(**settings(tmp_path, probe_steps=5)),
            train_dataset=word_pairs(8).to_iterable_dataset(),
            processing_class=tokenizer,
        )


def test_a_sharded_model_is_refused(tmp_path):
    args = NormBTConfig(**settings(tmp_path, probe_steps=5))
    for sharded in ({"is_fsdp_enabled": True}, {"is_deepspeed_enabled": True}):
        trainer = SimpleNamespace(args=args, **({"is_fsdp_enabled": False, "is_deepspeed_enabled": False} | sharded))
        with pytest.raises(ConfigError, match="FSDP or DeepSpeed shards it"):
            make_live_view(trainer)


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(ConfigError) as raised:
        NormBTConfig(**settings(tmp_path, probe_steps=0, probe_pairs=2, probe_norm="all"))
    for text in ("probe_steps must be at least 1", "probe_pairs must be at least 3", "probe_norm must be one of full"):
        assert text in str(raised.value)
