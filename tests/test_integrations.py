"""Integrations: what they share, under TRL's trainer; and, opt-in, the real frameworks in environments of their own.

The real runs need the Python of an environment with the framework installed, and are skipped without it:

    NORMBT_AXOLOTL_PYTHON=.../bin/python NORMBT_MS_SWIFT_PYTHON=.../bin/python \\
        NORMBT_LLAMA_FACTORY_PYTHON=.../bin/python NORMBT_OPENRLHF_PYTHON=.../bin/python \\
        pytest tests/test_integrations.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest

from tiny import VOCABULARY, tiny_model

pytest.importorskip("trl")

from trl import RewardConfig, RewardTrainer

from normbt.errors import StateError
from normbt.integrations.hf_trainer import STATE_FILE, NormBTMixin
from test_trainer import assert_same_parameters, logged, settings, train, word_pairs, word_tokenizer

SOURCE = Path(__file__).parents[1] / "src"
MU = 4.0


class MixedTrainer(NormBTMixin, RewardTrainer):
    normbt_settings: ClassVar = {"mu_init": MU}


def train_mixed(folder, data, *, resume=None, **changes):
    trainer = MixedTrainer(
        tiny_model("llama"),
        RewardConfig(**settings(folder, **changes)),
        train_dataset=data,
        processing_class=word_tokenizer(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_mixed_trainer_trains_as_normbttrainer(tmp_path):
    data, changes = word_pairs(40), {"gradient_accumulation_steps": 2}
    mixed = train_mixed(tmp_path / "mixed", data, **changes)
    ours = train(tmp_path / "ours", word_tokenizer(), data, mu_init=MU, batching="padded", **changes)
    assert_same_parameters(mixed.model, ours.model, 1e-6)
    assert logged(mixed, "normbt/mu") == pytest.approx(logged(ours, "mu"), rel=1e-5)
    assert logged(mixed, "normbt/updates") == [2, 3, 4, 5, 6]  # mu_init counts as one


def test_a_mixed_trainer_resumes_with_its_mu(tmp_path):
    data = word_pairs(40)
    whole = train_mixed(tmp_path, data, save_strategy="steps", save_steps=2)
    resumed = train_mixed(tmp_path / "resumed", data, resume=str(tmp_path / "checkpoint-2"))
    assert resumed.normbt.metrics() == pytest.approx(whole.normbt.metrics(), rel=1e-5)
    assert_same_parameters(resumed.model, whole.model, 1e-6)
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    with pytest.raises(StateError, match="mu can't be restored"):
        train_mixed(tmp_path / "again", data, resume=str(tmp_path / "checkpoint-2"))


# --- the frameworks themselves ----------------------------------------------------------------------------------------


def python_of(variable: str) -> str:
    return os.environ.get(variable) or pytest.skip(f"{variable} names no Python with this framework")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A tiny decoder with a byte-level tokenizer, and the same pairs in the frameworks' own forms."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    folder = tmp_path_factory.mktemp("material")
    special = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    letters.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<bos>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": len(symbols) + VOCABULARY}
    # Without LLaMA-Factory's dropout in the value head, which draws once for each token or, attached, for each row.
    config = Qwen2Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=3, summary_dropout_prob=0.0)
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    # Axolotl draws a new head before it sets its seed.
    config.num_labels = 1
    Qwen2ForSequenceClassification(config).save_pretrained(folder / "model-with-head")
    tokenizer.save_pretrained(folder / "model-with-head")
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in word_pairs(24)]
    messages = [
        {
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}],
            "rejected_response": rejected,
        }
        for prompt, chosen, rejected in pairs
    ]
    (folder / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    rated = [dict(zip(("input", "chosen", "rejected"), pair, strict=True)) | {"system": ""} for pair in pairs]
    (folder / "bradley_terry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    columns = ("instruction", "chosen", "rejected")
    (folder / "ranking.json").write_text(json.dumps([dict(zip(columns, pair, strict=True)) for pair in pairs]))
    described = {"file_name": "ranking.json", "ranking": True}
    described["columns"] = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    (folder / "dataset_info.json").write_text(json.dumps({"tiny": described}))
    return folder


def run_framework(command: list[str], folder: Path) -> list[dict]:
    """The log of the run's last checkpoint."""
    run_command(command, folder)
    (state,) = folder.glob("**/checkpoint-4/trainer_state.json")
    return [entry for entry in json.loads(state.read_text())["log_history"] if "grad_norm" in entry]


def run_command(command: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"AXOLOTL_DO_NOT_TRACK": "1"}
    environment.pop("HF_HOME", None)
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr[-3000:]


def assert_weighted(plain: list[dict], weighted: list[dict]) -> None:
    assert [entry["normbt/updates"] for entry in weighted] == [1, 2, 3, 4]
    assert weighted[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)  # the trainer's own, before any step
    assert weighted[0]["grad_norm"] != pytest.approx(plain[0]["grad_norm"], rel=1e-3)


def test_axolotl(tmp_path, material):
    axolotl = Path(python_of("NORMBT_AXOLOTL_PYTHON")).with_name("axolotl")
    run = {
        "base_model": f"{material}/model-with-head",
        "model_type": "AutoModelForSequenceClassification",
        "num_labels": 1,
    }
    run |= {"tokenizer_type": "AutoTokenizer", "chat_template": "tokenizer_default", "reward_model": True}
    data = {"path": f"{material}/bradley_terry.jsonl", "ds_type": "json", "type": "bradley_terry.chat_template"}
    run |= {"datasets": [data], "val_set_size": 0.0, "remove_unused_columns": False, "sequence_len": 128}
    run |= {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 2}
    run |= {"logging_steps": 1, "optimizer": "adamw_torch", "lr_scheduler": "constant", "learning_rate": 1e-3}
    run |= {"bf16": False, "attn_implementation": "sdpa", "use_cpu": True, "dataset_prepared_path": "prepared"}
    run |= {"output_dir": "out", "seed": 1, "special_tokens": {"pad_token": "<pad>"}}
    plugin = {"plugins": ["normbt.integrations.axolotl_plugin.NormBTPlugin"], "normbt": {"beta": 0.8}}
    halfway = tmp_path / "weighted" / "out" / "checkpoint-2"
    resume = plugin | {"resume_from_checkpoint": str(halfway)}
    logs = {}
    for name, changes in (("plain", {}), ("weighted", plugin), ("resumed", resume)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "reward.yaml").write_text(json.dumps(run | changes))  # JSON is YAML
        logs[name] = run_framework([str(axolotl), "train", "reward.yaml", "--launcher", "python"], tmp_path / name)
    assert_weighted(logs["plain"], logs["weighted"])
    assert json.loads((halfway / STATE_FILE).read_text())["settings"]["beta"] == 0.8
    assert logs["resumed"][-1]["normbt/mu"] == pytest.approx(logs["weighted"][-1]["normbt/mu"], rel=1e-5)


def test_ms_swift(tmp_path, material):
    swift = Path(python_of("NORMBT_MS_SWIFT_PYTHON")).with_name("swift")
    common = "--max_steps 4 --save_steps 2 --logging_steps 1 --report_to none --torch_dtype float32 --tuner_type full"
    common += " --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --model_type qwen2 --template qwen2_5"
    common += f" --dataset {material}/messages.jsonl --model {material}/model --check_model false --output_dir out"
    command = [str(swift), "rlhf", "--rlhf_type", "rm", *common.split()]
    plugin = ["--external_plugins", str(SOURCE / "normbt" / "integrations" / "ms_swift.py")]
    logs = {}
    for name, extra in (("plain", []), ("weighted", plugin)):
        (tmp_path / name).mkdir()
        logs[name] = run_framework([*command, *extra], tmp_path / name)
    assert_weighted(logs["plain"], logs["weighted"])

    (halfway,) = (tmp_path / "weighted").glob("**/checkpoint-2")
    (tmp_path / "resumed").mkdir()
    resumed = run_framework([*command, *plugin, "--resume_from_checkpoint", str(halfway)], tmp_path / "resumed")
    assert resumed[-1]["normbt/mu"] == pytest.approx(logs["weighted"][-1]["normbt/mu"], rel=1e-5)


def test_llama_factory(tmp_path, material):
    python = python_of("NORMBT_LLAMA_FACTORY_PYTHON")
    run = {"stage": "rm", "do_train": True, "finetuning_type": "full", "template": "qwen", "cutoff_len": 128}
    run |= {"model_name_or_path": f"{material}/model", "dataset_dir": str(material), "dataset": "tiny"}
    run |= {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "report_to": "none", "use_cpu": True}
    run |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "output_dir": "out"}
    logs = {}
    for name, module in (("plain", "llamafactory.cli train"), ("weighted", "normbt.integrations.llama_factory")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rm.yaml").write_text(json.dumps(run))  # JSON is YAML
        logs[name] = run_framework([python, "-m", *module.split(), "rm.yaml"], tmp_path / name)
    assert_weighted(logs["plain"], logs["weighted"])


def test_openrlhf(tmp_path, material):
    """OpenRLHF's trainer on DeepSpeed's ZeRO-2, on a CPU; `openrlhf_on_cpu.py` says what stands in for the GPU."""
    runner = [python_of("NORMBT_OPENRLHF_PYTHON"), str(Path(__file__).with_name("openrlhf_on_cpu.py"))]
    flags = f"--model.model_name_or_path {material}/model --data.dataset {material}/bradley_terry.jsonl"
    flags += f" --eval.dataset {material}/bradley_terry.jsonl --data.prompt_key input --data.max_len 128"
    flags += " --train.batch_size 4 --train.micro_batch_size 2 --ds.zero_stage 2 --ds.attn_implementation eager"
    flags += " --ckpt.output_dir out --ckpt.path checkpoints --ckpt.save_steps 2 --max_norm 0"
    flags += " --model.compute_fp32_loss_enable"
    logs = {}

    def run(name: str, module: str, *further: str) -> list[dict]:
        (tmp_path / name).mkdir(exist_ok=True)
        run_command([*runner, "logs.jsonl", module, *flags.split(), *further], tmp_path / name)
        return [json.loads(line) for line in (tmp_path / name / "logs.jsonl").read_text().splitlines()]

    logs["plain"] = run("plain", "openrlhf.cli.train_rm")
    logs["weighted"] = run("weighted", "normbt.integrations.openrlhf_trainer")
    assert [entry["normbt_updates"] for entry in logs["weighted"]] == [1, 2, 3, 4, 5, 6]
    # OpenRLHF trains in bfloat16; the head of an attached model works in float32.
    assert logs["weighted"][0]["loss"] == pytest.approx(logs["plain"][0]["loss"], rel=2e-3)
    assert logs["weighted"][0]["grad_norm"] != pytest.approx(logs["plain"][0]["grad_norm"], rel=2e-2)

    saved, halfway = tmp_path / "weighted" / "checkpoints", tmp_path / "resumed" / "checkpoints"
    shutil.copytree(saved / "global_step2", halfway / "global_step2")
    (halfway / "latest").write_text("global_step2")
    resumed = run("resumed", "normbt.integrations.openrlhf_trainer", "--ckpt.load_enable")
    assert [entry["step"] for entry in resumed] == [3, 4, 5, 6]
    assert resumed[-1]["normbt_mu"] == pytest.approx(logs["weighted"][-1]["normbt_mu"], rel=1e-5)
