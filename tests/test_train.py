"""`normbt train` from the command line to the saved model, on a tiny checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from normbt import cli, saving
from normbt.arguments import parse_train_arguments
from normbt.config import NormBTConfig
from normbt.errors import ConfigError, DataError
from normbt.pairs import read_pairs
from normbt.train import read_training_data
from normbt.trainer import NormBTTrainer


def train(checkpoint: Path, output_dir: Path, *argv: str, steps: int = 1) -> int:
    settings = ("--model_name_or_path", checkpoint, "--output_dir", output_dir, "--max_steps", steps)
    quiet = ("--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "--bf16", "false")
    return cli.main(["train", *map(str, settings), *quiet, *argv])


def read_sets(output_dir: Path) -> dict[str, Any]:
    record = json.loads((output_dir / "data_report.json").read_text(encoding="utf-8"))
    assert (record["kind"], record["schema_version"]) == ("training", 1)
    assert record["provenance"]["data"] == list(record["sets"].values())
    assert record["provenance"]["config"]["weighting"] == "normbt"
    return record["sets"]


def test_a_run_leaves_a_model_and_the_fate_of_every_row(
    tmp_path: Path, checkpoint: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pairs_file.open("a", encoding="utf-8") as stream:
        stream.write(
            '{"prompt": "w5", "chosen": 3, "rejected": "w6"}\n{"prompt": "w5", "chosen": "w6", "rejected": "w6"}\n'
        )
    assert train(checkpoint, tmp_path / "rm", "--dataset_name", str(pairs_file), steps=2) == 0
    printed = capsys.readouterr().out
    assert "18 rows read, 16 pairs kept; 1 malformed, 0 empty, 1 identical, 0 over-long" in printed
    assert "row 17:" in printed
    assert "weighting normbt of distance l2" in printed
    assert f"Model saved to {tmp_path / 'rm'}" in printed
    counts = read_sets(tmp_path / "rm")["train"]
    assert (counts["read"], counts["kept"], counts["malformed"], counts["identical"]) == (18, 16, 1, 1)
    assert (tmp_path / "rm" / "checkpoint-2" / "normbt_state.json").is_file()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").config.num_labels == 1


def test_evaluation_data_are_used_once_at_the_end_without_a_strategy(
    tmp_path: Path, checkpoint: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(pairs_file.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    data = ("--dataset_name", str(pairs_file), "--eval_data", str(pairs_file), str(other))
    assert train(checkpoint, tmp_path / "rm", *data) == 0
    sets = read_sets(tmp_path / "rm")
    assert {name: counts["kept"] for name, counts in sets.items()} == {"train": 16, "pairs": 16, "other": 4}
    metrics = json.loads((tmp_path / "rm" / "eval_results.json").read_text(encoding="utf-8"))
    assert {"eval_pairs_accuracy", "eval_other_accuracy"} <= set(metrics)
    assert f"eval_pairs_accuracy: {metrics['eval_pairs_accuracy']:.4f}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_works_out_of_the_box(tmp_path: Path, checkpoint: Path, pairs_file: Path) -> None:
    """`trl reward --use_peft` crashes with its own default task type, and loses the head without `modules_to_save`."""
    assert train(checkpoint, tmp_path / "rm", "--dataset_name", str(pairs_file), "--use_peft", "--lora_r", "2") == 0
    adapter = json.loads((tmp_path / "rm" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["task_type"] == "SEQ_CLS"
    assert adapter["modules_to_save"]
    assert adapter["r"] == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ([], "No data were named"),
        (["--dataset_name", "{pairs}", "--dataset_train_split", "test"], "none of its 16 rows is of the split"),
        (["--dataset_name", "{pairs}", "--max_length", "3"], "16 over-long"),
        (["--dataset_name", "{pairs}", "--loss", "scaled_bt"], "margin"),
    ],
)
def test_unusable_data_are_one_message(
    tmp_path: Path,
    checkpoint: Path,
    pairs_file: Path,
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(checkpoint, tmp_path / "rm", *(part.format(pairs=pairs_file) for part in argv)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_a_folder_that_cannot_be_written_stops_the_run_before_it_starts(
    checkpoint: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(checkpoint, pairs_file / "rm", "--dataset_name", str(pairs_file)) == 2
    assert "Cannot write to" in capsys.readouterr().err


def test_resuming_a_run_that_has_no_checkpoint_is_a_mistake(
    tmp_path: Path, checkpoint: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--dataset_name", str(pairs_file), "--resume_from_checkpoint", "true")
    assert train(checkpoint, tmp_path / "rm", *argv) == 2
    assert "nothing to resume from" in capsys.readouterr().err


def test_a_run_needs_a_model(pairs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dataset_name", str(pairs_file), "--bf16", "false"]) == 2
    assert "give --model_name_or_path" in capsys.readouterr().err


OWN_CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnModel(LlamaForSequenceClassification):
    config_class = OwnConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


def test_a_model_with_its_own_code_trains_and_its_checkpoint_is_proved(
    tmp_path: Path, checkpoint: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own-llama", "architectures": ["OwnModel"]}
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForSequenceClassification": "modeling_own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_own.py").write_text(OWN_CODE, encoding="utf-8")
    proved = []
    prove = saving.check_reload
    monkeypatch.setattr(saving, "check_reload", lambda *args, **kwargs: proved.append(prove(*args, **kwargs)))
    data = ("--dataset_name", str(pairs_file), "--trust_remote_code", "true")
    assert train(folder, tmp_path / "rm", *data) == 0
    assert proved == [None]
    assert (tmp_path / "rm" / "checkpoint-1" / "modeling_own.py").is_file()


@pytest.mark.parametrize("missing", ["everything", "weights", "tokenizer"])
def test_a_model_that_cannot_be_loaded_is_one_message(
    tmp_path: Path, checkpoint: Path, pairs_file: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    if missing != "everything":
        shutil.copytree(checkpoint, model)
    for file in {"weights": ["model.safetensors"], "tokenizer": ["tokenizer.json", "tokenizer_config.json"]}.get(
        missing, []
    ):
        (model / file).unlink()
    assert train(model, tmp_path / "rm", "--dataset_name", str(pairs_file)) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"normbt: Cannot load '{model}': " in printed
    assert "Traceback" not in printed


def test_what_goes_wrong_once_a_model_is_loaded_is_not_blamed_on_it(checkpoint: Path, pairs_file: Path) -> None:
    """Transformers wants to know how many steps a stream gives; that is no fault of the model."""
    settings = NormBTConfig("unused", bf16=False, use_cpu=True, report_to="none")
    stream = read_pairs(pairs_file, streaming=True)[0]
    with pytest.raises(ValueError, match="max_steps"):
        NormBTTrainer(str(checkpoint), settings, train_dataset=stream)


# --- which rows are read ----------------------------------------------------------------------------------------------


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    """Six rows for training and two for testing, told apart by their `split` column."""
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}", "split": "train"} for i in range(6)]
    rows += [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}", "split": "test"} for i in (6, 7)]
    path = tmp_path / "split.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*argv: object) -> Any:
    return read_training_data(parse_train_arguments([*map(str, argv), "--bf16", "false"]))


def test_splits_of_one_file(split_file: Path) -> None:
    data = read("--dataset_name", split_file, "--eval_strategy", "steps")
    assert (len(data.train), len(data.evaluation)) == (6, 2)
    assert set(data.reports) == {"train", "eval"}
    assert read("--dataset_name", split_file).evaluation is None


def test_a_file_for_evaluation_is_read_whole(split_file: Path, pairs_file: Path) -> None:
    data = read("--dataset_name", pairs_file, "--eval_data", split_file, "--eval_strategy", "steps")
    assert (len(data.train), len(data.evaluation)) == (16, 8)


def test_several_files_are_joined(split_file: Path, pairs_file: Path) -> None:
    data = read("--dataset_name", split_file, pairs_file)
    assert len(data.train) == 22
    assert data.reports["train"].kept == 22


def test_evaluation_sets_of_one_name_are_numbered(split_file: Path, tmp_path: Path) -> None:
    train_file = tmp_path / "train.jsonl"
    train_file.write_text(split_file.read_text(encoding="utf-8"), encoding="utf-8")
    data = read("--dataset_name", split_file, "--eval_data", split_file, split_file, train_file)
    assert list(data.evaluation) == ["split-1", "split-2", "train-3"]


def test_no_evaluation_set_is_lost_to_the_name_of_another(split_file: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "a.jsonl", "a-2.json", "a-2-2.json")]
    for file in files:
        shutil.copy(split_file, file)
    data = read("--dataset_name", split_file, "--eval_data", *files)
    assert list(data.evaluation) == ["a-1", "a-2-2-2", "a-2", "a-2-2"]


def test_a_mixture_of_trl(split_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"datasets:\n  - path: json\n    data_files: {split_file}\n", encoding="utf-8")
    assert len(read("--config", recipe).train) == 8
    with pytest.raises(ConfigError, match="test_split_size"):
        read("--config", recipe, "--eval_strategy", "steps")
    data = read("--config", recipe, "--eval_strategy", "steps", "--test_split_size", "0.25", "--dataset_name", "other")
    assert (len(data.train), len(data.evaluation)) == (6, 2)
    assert "`datasets` is read" in caplog.text
    recipe.write_text("datasets:\n  - path: json\n    data_files: nowhere.jsonl\n", encoding="utf-8")
    with pytest.raises(DataError, match="nowhere"):
        read("--config", recipe)


def test_a_stream_is_read_as_one(pairs_file: Path) -> None:
    data = read("--dataset_name", pairs_file, "--dataset_streaming")
    assert data.reports["train"].kept == 0
    assert len(list(data.train)) == 16
    assert data.reports["train"].kept == 16
