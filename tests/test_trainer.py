"""The trainer against TRL's own, against a plain loop, and against itself on other splits of the same pairs."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from normbt.errors import ConfigError, DataError, ModelError, StateError
from tiny import EOS, PAD, VOCABULARY, tiny_model

pytest.importorskip("trl")

from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from normbt import NormBTLoss, capture_hidden
from normbt import trainer as trainer_module
from normbt.config import NormBTConfig
from normbt.trainer import NormBTTrainer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the answers of :func:`word_pairs` end in its EOS themselves."""
    vocabulary = {f"w{index}": index for index in range(VOCABULARY)}
    vocabulary |= {"<pad>": PAD, "<eos>": EOS}
    for index in (PAD, EOS):
        del vocabulary[f"w{index}"]
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def word_pairs(count: int, *, seed: int = 0, margin: bool = False) -> Dataset:
    """Pairs of distinct answers of 2 to 12 words after a prompt of 1 to 6."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(f"w{i}" for i in torch.randint(5, VOCABULARY, (length,), generator=generator).tolist())

    rows = []
    for index in range(count):
        prompt = words(1, 6) + " "
        row = {"prompt": prompt, "chosen": words(2, 6) + " w7 <eos>", "rejected": words(2, 12) + " w9 <eos>"}
        rows.append(row | ({"margin": 0.5 + index % 3} if margin else {}))
    return Dataset.from_list(rows)


def settings(folder, **changes) -> dict:
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return defaults | changes


def train(folder, tokenizer, data, *, kind="llama", trainer_class=NormBTTrainer, resume=None, **changes):
    model = tiny_model(kind)
    config = NormBTConfig if trainer_class is NormBTTrainer else RewardConfig
    trainer = trainer_class(
        model, config(**settings(folder, **changes)), train_dataset=data, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry and "train_runtime" not in entry]


def assert_same_parameters(first, second, tolerance: float) -> None:
    second_parameters = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(parameter, second_parameters[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"center_rewards_coefficient": 0.1},
        {"activation_checkpointing": True},
    ],
    ids=["plain", "accumulation", "centering", "checkpointing"],
)
@pytest.mark.parametrize("margin", [False, True], ids=["no-margin", "margin"])
def test_plain_bt_trains_as_trl_does(tmp_path, tokenizer, changes, margin):
    data = word_pairs(40, margin=margin)
    ours = train(tmp_path / "ours", tokenizer, data, weighting="none", **changes)
    theirs = train(tmp_path / "theirs", tokenizer, data, trainer_class=RewardTrainer, **changes)

    assert len(logged(ours, "loss")) == 5
    names = ["loss", "grad_norm", "mean_reward", "accuracy", "margin", "num_tokens"]
    if "gradient_accumulation_steps" not in changes:  # TRL averages the extremes of micro-batches
        names += ["min_reward", "max_reward"]
    for name in names:
        assert logged(ours, name) == pytest.approx(logged(theirs, name), rel=1e-5, abs=1e-6), name
    assert_same_parameters(ours.model, theirs.model, 1e-6)


@pytest.mark.parametrize("weighting", ["normbt", "none", "raw"])
def test_the_split_over_micro_batches_changes_nothing(tmp_path, tokenizer, weighting):
    data = word_pairs(48)
    runs = [
        train(
            tmp_path / f"{size}x{steps}",
            tokenizer,
            data,
            weighting=weighting,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        for size, steps in ((8, 1), (4, 2), (2, 4), (1, 8))
    ]
    for other in runs[1:]:
        for name in ("loss", "loss_unweighted", "distance", "weight_q50", "effective_batch_size", "accuracy"):
            assert logged(other, name) == pytest.approx(logged(runs[0], name), rel=1e-5, abs=1e-6), name
        if weighting == "normbt":
            assert logged(other, "mu") == pytest.approx(logged(runs[0], "mu"), rel=1e-5)
        assert_same_parameters(runs[0].model, other.model, 1e-5)


@pytest.mark.parametrize("weighting", ["normbt", "none"])
def test_the_layout_of_the_pairs_changes_nothing(tmp_path, tokenizer, weighting):
    data = word_pairs(48)
    changes = {"weighting": weighting, "gradient_accumulation_steps": 2}
    padded = train(tmp_path / "padded", tokenizer, data, batching="padded", **changes)
    assert padded.step_plan.batching == "padded"
    for batching, budget in (("packed", None), ("packed", 40), ("packed-unshared", 60)):
        name = f"{batching}-{budget}"
        packed = train(tmp_path / name, tokenizer, data, batching=batching, token_budget=budget, **changes)
        assert packed.step_plan.batching == batching
        for metric in ("loss", "distance", "accuracy", "num_tokens", *(["mu"] if weighting == "normbt" else [])):
            assert logged(packed, metric) == pytest.approx(logged(padded, metric), rel=1e-5, abs=1e-6), (name, metric)
        assert_same_parameters(padded.model, packed.model, 1e-5)


def test_a_model_that_cannot_pack_is_padded_and_says_so(tmp_path, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, tokenizer, word_pairs(8), kind="bert", max_steps=1)
    assert trainer.step_plan.batching == "padded"
    assert "batching padded, because" in caplog.text


def test_packing_that_is_not_exact_falls_back_to_padding(tmp_path, tokenizer, caplog, monkeypatch):
    from normbt import attention

    right = attention.attend

    def leaking(module, query, key, value, attention_mask, pair_layout=None, **kwargs):
        if pair_layout is not None:
            value = value + 0.1 * value.mean(dim=2, keepdim=True)  # every token sees a little of all pairs
        return right(module, query, key, value, attention_mask, pair_layout=pair_layout, **kwargs)

    monkeypatch.setattr(attention, "attend", leaking)
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, tokenizer, word_pairs(8), max_steps=1)
    assert trainer.step_plan.batching == "padded"
    assert "DIFFER FROM" in caplog.text


def test_an_uneven_last_step_is_divided_by_its_own_pairs(tmp_path, tokenizer):
    # 10 pairs: the second step of 8 holds 2, as one micro-batch of 2 or as two of 1.
    runs = [
        train(
            tmp_path / f"{size}x{steps}",
            tokenizer,
            word_pairs(10),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=2,
        )
        for size, steps in ((8, 1), (1, 8))
    ]
    assert logged(runs[1], "loss") == pytest.approx(logged(runs[0], "loss"), rel=1e-5)
    assert_same_parameters(runs[0].model, runs[1].model, 1e-5)


def test_a_plain_loop_with_the_loss_module_trains_the_same(tmp_path, tokenizer):
    data = word_pairs(40)
    changes = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "learning_rate": 0.05}
    trainer = train(tmp_path, tokenizer, data, **changes)

    model, loss = tiny_model("llama").train(), NormBTLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    drawn = NormBTTrainer(
        tiny_model("llama"),
        NormBTConfig(**settings(tmp_path)),
        train_dataset=data,
        processing_class=tokenizer,
    )
    batches = [drawn.step_plan.padded(batch.examples) for batch in drawn.get_train_dataloader()][:5]
    for batch in batches:
        with capture_hidden(model) as captured:
            rewards = model(**batch.inputs).logits.squeeze(-1)
        value = loss(*rewards.chunk(2), *captured.hidden.chunk(2))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    assert float(loss.mean) == pytest.approx(logged(trainer, "mu")[-1], rel=1e-5)
    assert_same_parameters(model, trainer.model, 1e-6)


def test_weighting_changes_the_training(tmp_path, tokenizer):
    data = word_pairs(40)
    changes = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}  # clipping would hide a common factor
    heads = {
        weighting: train(tmp_path / weighting, tokenizer, data, weighting=weighting, **changes).model.score
        for weighting in ("normbt", "none", "raw", "batch")
    }
    weights = [head.weight for head in heads.values()]
    for i, first in enumerate(weights):
        for second in weights[i + 1 :]:
            assert not torch.allclose(first, second, atol=1e-5)


def test_mu_moves_once_per_step_and_stays_in_evaluation(tmp_path, tokenizer):
    data = word_pairs(24)
    trainer = train(tmp_path, tokenizer, data, beta=0.5, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    distances, mu = logged(trainer, "distance"), logged(trainer, "mu")
    expected = distances[0]
    for distance, value in zip(distances, mu, strict=True):
        expected = 0.5 * expected + 0.5 * distance
        assert value == pytest.approx(expected, rel=1e-5)
    before = trainer.mu
    trainer.evaluate(data)
    assert trainer.mu == before


def test_mu_init_is_used_at_the_first_step(tmp_path, tokenizer):
    data = word_pairs(8)
    changes = {"max_steps": 1, "max_weight": None}
    small = train(tmp_path / "a", tokenizer, data, mu_init=0.1, **changes)
    large = train(tmp_path / "b", tokenizer, data, mu_init=0.2, **changes)
    assert logged(large, "weight_q50")[0] == pytest.approx(2 * logged(small, "weight_q50")[0], rel=1e-5)
    assert logged(small, "mu")[0] == pytest.approx(0.09 + 0.1 * logged(small, "distance")[0], rel=1e-5)


def test_resume_equals_an_unbroken_run(tmp_path, tokenizer):
    data = word_pairs(40)
    changes = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "beta": 0.5}
    whole = train(tmp_path / "whole", tokenizer, data, **changes)
    resumed = train(tmp_path / "resumed", tokenizer, data, resume=str(tmp_path / "whole" / "checkpoint-3"), **changes)
    assert logged(resumed, "mu") == logged(whole, "mu")
    assert logged(resumed, "num_tokens") == logged(whole, "num_tokens")
    assert_same_parameters(whole.model, resumed.model, 0.0)


def pairs_of_each_step(monkeypatch, run):
    """The ids that each step of a run draws, in order."""
    drawn, draw = [], NormBTTrainer._micro_batches

    def watched(self, examples):
        drawn.append([one["id"] for part in examples for one in part.examples])
        return draw(self, examples)

    with monkeypatch.context() as patched:
        patched.setattr(NormBTTrainer, "_micro_batches", watched)
        return run(), drawn


def test_pairs_of_alike_length_come_together_and_a_resume_keeps_their_order(tmp_path, tokenizer, monkeypatch):
    """`group_by_length`, as TRL's users know it: two epochs of twelve steps, and a resume inside the second."""
    data = word_pairs(96)
    changes = {"max_steps": 24, "save_strategy": "steps", "save_steps": 17, "gradient_accumulation_steps": 2}
    changes |= {"train_sampling_strategy": "group_by_length"}
    whole, drawn = pairs_of_each_step(monkeypatch, lambda: train(tmp_path / "whole", tokenizer, data, **changes))
    rows = {row["id"]: len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in whole.train_dataset}
    for epoch in (drawn[:12], drawn[12:]):
        assert sorted(one for step in epoch for one in step) == sorted(rows)
    assert drawn[:12] != drawn[12:]

    def spread(steps):
        return sum(max(map(rows.get, step)) - min(map(rows.get, step)) for step in steps)

    _, at_random = pairs_of_each_step(
        monkeypatch,
        lambda: train(tmp_path, tokenizer, data, **changes | {"train_sampling_strategy": "random"}),
    )
    assert spread(drawn) < 0.7 * spread(at_random)
    checkpoint = str(tmp_path / "whole" / "checkpoint-17")
    resumed, rest = pairs_of_each_step(
        monkeypatch, lambda: train(tmp_path / "resumed", tokenizer, data, resume=checkpoint, **changes)
    )
    assert rest == drawn[17:]
    assert_same_parameters(whole.model, resumed.model, 0.0)


def test_a_resume_on_several_processes_draws_in_the_order_of_its_epoch(tmp_path, tokenizer, monkeypatch):
    """What each of two processes draws of the second epoch after two of its steps, with Accelerate's own loaders."""
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    config = NormBTConfig(**settings(tmp_path, train_sampling_strategy="group_by_length"))
    trainer = NormBTTrainer(tiny_model("llama"), config, train_dataset=word_pairs(48), processing_class=tokenizer)

    def epoch(number, *, skipping=0):
        loader = trainer.get_train_dataloader()
        if skipping:
            loader = skip_first_batches(loader, skipping)
        loader.set_epoch(number)
        return [[one["id"] for one in drawn.examples] for drawn in loader]

    assert isinstance(trainer.get_train_dataloader().batch_sampler, BatchSamplerShard)
    assert len(epoch(1)) == 6
    assert epoch(1) != epoch(0)
    assert epoch(1, skipping=2) == epoch(1)[2:]


def test_predictions_belong_to_the_rows_however_training_samples(tmp_path, tokenizer):
    data = word_pairs(12)
    scores = []
    for strategy in ("sequential", "group_by_length"):
        config = NormBTConfig(**settings(tmp_path, train_sampling_strategy=strategy))
        trainer = NormBTTrainer(tiny_model("llama"), config, train_dataset=data, processing_class=tokenizer)
        scores.append(trainer.predict(trainer.train_dataset).predictions)
    assert scores[0] == pytest.approx(scores[1])


def test_a_sampler_that_is_not_for_pairs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch_rebalance"):
        NormBTConfig(**settings(tmp_path, train_sampling_strategy="batch_rebalance"))


@pytest.mark.parametrize(
    "change", [{"weighting": "none"}, {"distance": "cosine"}, {"beta": 0.5}, {"loss": "scaled_bt"}], ids=str
)
def test_resume_with_other_settings_is_refused_by_name(tmp_path, tokenizer, change):
    data = word_pairs(16, margin=True)
    train(tmp_path, tokenizer, data, max_steps=2, save_strategy="steps", save_steps=2)
    with pytest.raises(StateError, match=next(iter(change))):
        train(tmp_path, tokenizer, data, max_steps=4, resume=str(tmp_path / "checkpoint-2"), **change)


def test_resume_without_a_state_is_refused(tmp_path, tokenizer):
    data = word_pairs(16)
    train(tmp_path, tokenizer, data, max_steps=2, save_strategy="steps", save_steps=2)
    (tmp_path / "checkpoint-2" / "normbt_state.json").unlink()
    with pytest.raises(StateError, match=r"normbt_state\.json"):
        train(tmp_path, tokenizer, data, max_steps=4, resume=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_holds_mu_beside_the_model_and_not_in_it(tmp_path, tokenizer):
    from safetensors import safe_open

    trainer = train(tmp_path, tokenizer, word_pairs(16), max_steps=2, save_strategy="steps", save_steps=2)
    folder = tmp_path / "checkpoint-2"
    state = json.loads((folder / "normbt_state.json").read_text())
    assert state["mu"] == logged(trainer, "mu")[-1]
    assert state["updates"] == 2
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tiny_model("llama").state_dict())


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("setting", "token", "pad"), [("eos_token", "<pad>", "<|pad|>"), ("pad_token", "<eos>", "<pad>")]
)
def test_settings_cannot_make_the_pad_token_eos(tmp_path, setting, token, pad, caplog):
    """The first checkpoint is proved: plain Transformers reads the same token."""
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = train(tmp_path, word_tokenizer(), word_pairs(16), **saving, **{setting: token})
    assert f"pad token set to '{pad}'" in caplog.text
    used = trainer.processing_class
    assert (used.eos_token, used.pad_token) == (token if setting == "eos_token" else "<eos>", pad)
    assert trainer.model.config.pad_token_id == used.pad_token_id


def test_a_cloned_template_whose_eos_is_the_pad_token_is_refused(tmp_path):
    other = word_tokenizer()
    other.eos_token, other.chat_template = "<pad>", "{{ messages }}"
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"With chat_template_path .*other.* the pad token is the EOS token"):
        train(tmp_path, word_tokenizer(), word_pairs(8), chat_template_path=str(tmp_path / "other"))


@pytest.mark.parametrize("batching", ["packed", "packed-unshared", "padded"])
def test_the_tokens_that_the_model_reads_are_counted(tmp_path, tokenizer, batching, caplog):
    """Transformers' ``include_num_input_tokens_seen``, with padding and without."""
    seen = {}
    for kind in ("all", "non_padding"):
        changes = {"include_num_input_tokens_seen": kind, "batching": batching, "max_steps": 2}
        trainer = train(tmp_path / kind, tokenizer, word_pairs(16), gradient_accumulation_steps=2, **changes)
        logs = [entry for entry in trainer.state.log_history if "mu" in entry]
        seen[kind] = [entry["num_input_tokens_seen"] for entry in logs]
    tokens = [entry["num_tokens"] for entry in logs]
    assert "Tried to track" not in caplog.text
    assert len(tokens) == 2
    if batching == "padded":
        assert seen["non_padding"] == tokens
        assert all(count > least for count, least in zip(seen["all"], tokens, strict=True))
    else:
        assert seen["non_padding"] == seen["all"]
        assert [count < most for count, most in zip(seen["all"], tokens, strict=True)] == [batching == "packed"] * 2


def test_a_lost_head_is_noticed_at_the_first_checkpoint(tmp_path, tokenizer, monkeypatch):
    save = NormBTTrainer.save_model

    def save_without_head(self, output_dir=None, _internal_call=False):
        head = self.model.score.weight.detach().clone()
        with torch.no_grad():
            self.model.score.weight.normal_()
            save(self, output_dir, _internal_call)
            self.model.score.weight.copy_(head)

    monkeypatch.setattr(NormBTTrainer, "save_model", save_without_head)
    with pytest.raises(ModelError, match="head"):
        train(tmp_path, tokenizer, word_pairs(16), max_steps=2, save_strategy="steps", save_steps=2)


def test_each_evaluation_set_has_its_own_exact_metrics(tmp_path, tokenizer):
    sets = {"a": word_pairs(5, seed=1), "b": word_pairs(7, seed=2)}
    trainer = NormBTTrainer(
        tiny_model("llama"),
        NormBTConfig(**settings(tmp_path, per_device_eval_batch_size=4)),
        train_dataset=word_pairs(8),
        eval_dataset=sets,
        processing_class=tokenizer,
    )
    metrics = trainer.evaluate()
    for name in sets:
        right, losses = [], []
        for example in trainer.eval_dataset[name]:
            rewards = [
                trainer.model(torch.tensor([example[side]])).logits.item() for side in ("chosen_ids", "rejected_ids")
            ]
            right.append(rewards[0] > rewards[1])
            losses.append(torch.nn.functional.softplus(torch.tensor(rewards[1] - rewards[0])).item())
        assert metrics[f"eval_{name}_accuracy"] == pytest.approx(sum(right) / len(right))
        assert metrics[f"eval_{name}_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_evaluation_is_packed_and_gives_the_numbers_of_padding(tmp_path, tokenizer):
    """Alone, where the packed layout is proven first, and within a run; 11 pairs leave an uneven last batch."""
    changes = {"per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    found, forwarded = {}, {}
    for batching in ("packed", "packed-unshared", "padded"):
        trainer = NormBTTrainer(
            tiny_model("llama"),
            NormBTConfig(**settings(tmp_path / batching, batching=batching, **changes)),
            train_dataset=word_pairs(8),
            eval_dataset=word_pairs(11, seed=1, margin=True),
            processing_class=tokenizer,
        )
        tokens = []
        before = trainer.evaluate()
        hook = trainer.model.register_forward_pre_hook(
            lambda _, args, kwargs, tokens=tokens: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        alone = trainer.predict(trainer.eval_dataset)
        forwarded[batching] = sum(tokens[-3:])  # the batches; before them the layout was checked
        hook.remove()
        trainer.train()
        within = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
        assert trainer.model.config._attn_implementation == "sdpa"
        metrics = [
            {k: v for k, v in each.items() if "_time" not in k and "runtime" not in k and "per_" not in k}
            for each in (before, within)
        ]
        found[batching] = (*metrics, alone.metrics["test_accuracy"], alone.predictions)
    for batching in ("packed", "packed-unshared"):
        for number, (ours, theirs) in enumerate(zip(found[batching], found["padded"], strict=True)):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), (batching, number)
    assert forwarded["packed"] < forwarded["packed-unshared"] < forwarded["padded"]


def test_a_stream_trains_packed_and_its_rows_are_counted_once(tmp_path, tokenizer):
    stream = word_pairs(16).to_iterable_dataset()
    trainer = train(tmp_path, tokenizer, stream, max_steps=4, dataloader_num_workers=0)
    assert trainer.step_plan.batching == "packed"
    assert trainer.data_reports["train"].read == 16
    assert len(logged(trainer, "mu")) == 4


def test_the_plan_is_made_for_the_device_of_the_run_while_the_model_is_still_elsewhere(
    tmp_path, tokenizer, monkeypatch
):
    config = NormBTConfig(**settings(tmp_path, bf16_full_eval=True))
    trainer = NormBTTrainer(tiny_model(), config, train_dataset=word_pairs(8), processing_class=tokenizer)
    assert trainer.step_plan.token_budget == 2048
    monkeypatch.setattr(NormBTConfig, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    plan = trainer._make_step_plan()
    assert plan.token_budget == 16_384
    assert "of 1024.0 GiB free" in plan.reason


def test_every_process_pads_where_the_check_fails_in_one(tmp_path, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(trainer_module, "least_of_all", lambda numbers, device: [min(n, 0) for n in numbers])
    config = NormBTConfig(**settings(tmp_path, max_steps=1))
    trainer = NormBTTrainer(tiny_model(), config, train_dataset=word_pairs(8), processing_class=tokenizer)
    monkeypatch.setattr(trainer, "step_plan", replace(trainer.step_plan, batching="packed", token_budget=100))
    trainer.train()
    assert trainer.step_plan.batching == "padded"
    assert "differ from separate sequences in another process" in trainer.step_plan.reason
    assert "in another process. Batches are padded instead." in caplog.text


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "deberta-v2"])
def test_other_architectures_train(tmp_path, tokenizer, kind):
    trainer = train(tmp_path, tokenizer, word_pairs(16), kind=kind, max_steps=2)
    assert all(torch.isfinite(torch.tensor(logged(trainer, "loss"))))
    assert logged(trainer, "distance")[0] > 0


class TestPeft:
    @staticmethod
    def lora(**changes):
        from peft import LoraConfig

        return LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"]} | changes))

    @staticmethod
    def trainer(folder, tokenizer, peft_config, **changes):
        return NormBTTrainer(
            tiny_model("llama"),
            NormBTConfig(**settings(folder, **changes)),
            train_dataset=word_pairs(16),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    @pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "SEQ_CLS"])
    def test_the_head_is_always_trained_and_saved(self, tmp_path, tokenizer, task_type, caplog):
        config = self.lora(task_type=task_type)
        with caplog.at_level(logging.WARNING):
            trainer = self.trainer(tmp_path, tokenizer, config, max_steps=2, save_strategy="steps", save_steps=2)
        assert ("SEQ_CLS" in caplog.text) == (task_type != "SEQ_CLS")
        before = trainer._capture.head.weight.detach().clone()
        trainer.train()  # the first checkpoint proves that the head is in it
        assert not torch.equal(before, trainer._capture.head.weight)
        assert config.task_type == task_type, "the user's configuration is left as it was"

        from peft import PeftModel

        reloaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "checkpoint-2")
        ids = torch.tensor([[7, 8, 9, EOS]])
        torch.testing.assert_close(reloaded(ids).logits, trainer.model.eval()(ids).logits)

    def test_lora_on_the_head_alone_is_refused(self, tmp_path, tokenizer):
        from peft import get_peft_model

        model = get_peft_model(tiny_model("llama"), self.lora(target_modules=["q_proj", "score"]))
        with pytest.raises(ModelError, match="score"):
            NormBTTrainer(
                model, NormBTConfig(**settings(tmp_path)), train_dataset=word_pairs(8), processing_class=tokenizer
            )


def test_a_margin_column_can_be_left_out(tmp_path, tokenizer):
    without = train(tmp_path / "without", tokenizer, word_pairs(16), max_steps=2)
    ignored = train(tmp_path / "ignored", tokenizer, word_pairs(16, margin=True), max_steps=2, use_margin=False)
    used = train(tmp_path / "used", tokenizer, word_pairs(16, margin=True), max_steps=2)
    assert logged(ignored, "loss") == logged(without, "loss")
    assert logged(used, "loss") != logged(without, "loss")
    with pytest.raises(ConfigError, match="use_margin"):
        NormBTConfig(output_dir=str(tmp_path), loss="scaled_bt", use_margin=False)


def test_scaled_bt_without_margins_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match="margin"):
        train(tmp_path, tokenizer, word_pairs(8), loss="scaled_bt", max_steps=1)


def test_trl_settings_are_refused_by_name(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="NormBTConfig"):
        NormBTTrainer(tiny_model("llama"), RewardConfig(**settings(tmp_path)), train_dataset=word_pairs(8))


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        NormBTConfig(**settings(tmp_path, beta=1.0, eps=0.0, max_weight=-1.0, smoothing=0.5, weighting="nrombt"))
    for name in ("beta", "eps", "max_weight", "smoothing", "weighting"):
        assert name in str(error.value)


def test_bf16_autocast_keeps_rewards_and_loss_in_float32(tmp_path, tokenizer):
    trainer = train(tmp_path, tokenizer, word_pairs(16), bf16=True, max_steps=1)
    batch = trainer.step_plan.padded(next(iter(trainer.get_train_dataloader())).examples)
    with trainer.compute_loss_context_manager():
        loss, outputs = trainer.compute_loss(trainer.model_wrapped, batch, return_outputs=True)
    assert loss.dtype == outputs["logits"].dtype == torch.float32
    rounded = outputs["logits"].to(torch.bfloat16).float()
    assert not torch.equal(rounded, outputs["logits"]), "rewards were rounded to bf16 on the way"
