"""The doctor finds what is missing, and shows what the head really reads."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

import tiny
from normbt import cli, doctor
from normbt.errors import ModelError

ROOT = Path(__file__).parents[1]


def test_the_machine() -> None:
    report = doctor.examine()
    assert report.versions["torch"] == torch.__version__
    assert {"python", "transformers", "trl", "peft", "accelerate", "datasets"} <= set(report.versions)
    assert report.free_memory > 0
    assert report.model is None


def test_every_extra_has_a_purpose() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"all"}  # `all` is made of the others


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.missing_extras()) == []
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in {"trl", "jinja2"} else installed(name))
    missing = {extra.name: set(extra.missing) for extra in doctor.missing_extras()}
    assert missing == {"train": {"trl"}, "report": {"jinja2"}, "demo": {"trl", "jinja2"}}


def test_a_package_without_a_build_for_this_system_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = "atheris>=3; sys_platform == 'elsewhere' and extra == 'fuzz'"
    here = "atheris>=3; sys_platform != 'elsewhere' and extra == 'fuzz'"
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    for requirement, missing in (
        (elsewhere, []),
        (here, [doctor.MissingExtra("fuzz", doctor.EXTRAS["fuzz"], ("atheris",))]),
    ):
        monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name, found=requirement: [found])
        assert list(doctor.missing_extras()) == missing


def test_a_causal_model_reads_the_last_token(checkpoint: Path, pairs_file: Path) -> None:
    report = doctor.examine_model(str(checkpoint), str(pairs_file))
    for answer, length in ((report.chosen, 10), (report.rejected, 11)):
        assert len(answer.tokens) == length
        assert answer.tokens[-1].text == "<eos>"
        assert answer.pooled == (length - 1,)
    assert report.prefix_length == 4
    assert report.head.startswith("score: Linear")
    assert report.special_tokens["pad"] == doctor.Token("<pad>", tiny.PAD)
    assert report.warnings == ()


def test_an_encoder_reads_the_first_token(encoder_checkpoint: Path, pairs_file: Path) -> None:
    report = doctor.examine_model(str(encoder_checkpoint), str(pairs_file))
    assert report.chosen.pooled == (0,)
    assert report.architecture == "BertForSequenceClassification"


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_the_pooled_position_of_every_decoder(kind: str) -> None:
    (ids,) = tiny.random_rows([7])
    model = tiny.tiny_model(kind)
    positions, reward = doctor.pooled_positions(model, ids)
    assert positions == (6,)
    with torch.no_grad():
        assert reward == pytest.approx(model(input_ids=torch.tensor([ids])).logits.item(), abs=1e-5)


def test_mean_pooling_is_shown_as_it_is() -> None:
    (ids,) = tiny.random_rows([5])
    positions, _ = doctor.pooled_positions(tiny.tiny_model("modernbert", classifier_pooling="mean"), ids)
    assert positions == (0, 1, 2, 3, 4)


def test_a_model_without_a_named_backbone_is_refused() -> None:
    with pytest.raises(ModelError, match="does not name its backbone"):
        doctor.pooled_positions(torch.nn.Sequential(torch.nn.Linear(2, 1)), [1])


def test_a_random_head_is_a_warning(checkpoint: Path, pairs_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(base)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(base)
    (warning,) = doctor.examine_model(str(base), str(pairs_file)).warnings
    assert warning.startswith("the head is random.")


def test_a_pad_token_that_is_eos_is_a_warning(checkpoint: Path, pairs_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(checkpoint).save_pretrained(tmp_path)
    report = doctor.examine_model(str(tmp_path), str(pairs_file))
    assert report.special_tokens["pad"] == doctor.Token("<eos>", tiny.EOS)
    assert any("the pad token is EOS" in warning for warning in report.warnings)
    assert any("pad token set to" in warning for warning in report.warnings)  # what training will do about it


@pytest.mark.parametrize(
    ("opening", "closing", "warning"),
    [
        ("<bos> ", " <eos>", None),
        ("<bos> <bos> ", " <eos>", "begins with two BOS tokens"),
        ("<bos> ", "", "does not close with EOS (<eos>): training appends it"),
        ("<bos> ", " <eos> w9", None),  # a chat template may end its turn with more than EOS
    ],
)
def test_what_looks_wrong_in_a_template(
    checkpoint: Path, tmp_path: Path, opening: str, closing: str, warning: str | None
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    template = opening + "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}" + closing
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    sides = {side: [{"role": "assistant", "content": word}] for side, word in (("chosen", "w6"), ("rejected", "w7"))}
    row = {"prompt": [{"role": "user", "content": "w5"}], **sides}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = doctor.examine_model(str(model), str(tmp_path / "pairs.jsonl")).warnings
    assert len(found) == (warning is not None)
    assert all(warning in text for text in found if warning)


def test_a_frozen_adapter_is_looked_at_like_the_model_it_is_on(
    checkpoint: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """An adapter is loaded for inference, with nothing in it that requires a gradient."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(tmp_path / "adapter")
    found = doctor.examine_model(str(tmp_path / "adapter"), str(pairs_file))
    of_base = doctor.examine_model(str(checkpoint), str(pairs_file))
    assert (found.chosen.pooled, found.rejected.pooled) == (of_base.chosen.pooled, of_base.rejected.pooled)
    assert found.chosen.reward == pytest.approx(of_base.chosen.reward, abs=1e-5)


def test_data_without_a_model_are_not_ignored(pairs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--data", str(pairs_file)]) == 2
    assert "--data needs a MODEL" in capsys.readouterr().err


def test_the_command_marks_the_pooled_token(
    checkpoint: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(checkpoint), "--data", str(pairs_file)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"⟪<eos> {tiny.EOS}⟫|") == 2
    assert "chosen: 10 tokens" in printed
    assert "pad" in printed


def test_a_model_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "./nowhere"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("normbt: ")
    assert "./nowhere" in printed
    assert "Traceback" not in printed
