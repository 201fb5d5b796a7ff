"""The command line: what it accepts, what it refuses, and in which words."""

import errno
import re
from pathlib import Path

import pytest

from normbt import cli
from normbt.arguments import TrainArguments, describe_settings, parse_train_arguments
from normbt.config import NormBTConfig
from normbt.errors import ConfigError

RECIPE_OF_TRL = """\
model_name_or_path: some/model
dataset_name: some/data
output_dir: out
learning_rate: 1e-5
bf16: false
use_peft: true
eval_strategy: steps
max_length: 2048
"""


def parse(*argv: str) -> TrainArguments:
    return parse_train_arguments([*argv, "--bf16", "false"])


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--max-length", "8"], ["--max_length", "8"]),
        (["--max-length=a-b--c"], ["--max_length=a-b--c"]),
        (["--run_name", "a-b"], ["--run_name", "a-b"]),
        (["--eos-token=--eos-token"], ["--eos_token=--eos-token"]),
        (["best-of-n", "-h", "-1"], ["best-of-n", "-h", "-1"]),
        (["--a-b", "--", "--a-b"], ["--a_b", "--", "--a-b"]),
        (["--"], ["--"]),
        ([], []),
    ],
)
def test_dashes_become_underscores_in_names_only(given: list[str], wanted: list[str]) -> None:
    assert cli.with_underscores(given) == wanted


def test_settings_of_trl_and_ours_are_read() -> None:
    arguments = parse(
        *("--model_name_or_path", "m", "--dataset_name", "a.jsonl", "b.jsonl", "--eval_data", "c.jsonl"),
        *("--learning_rate", "3e-4", "--loss", "scaled_bt", "--weighting", "batch", "--distance", "cosine"),
        *("--beta", "0.5", "--eps", "1e-3", "--max_weight", "none", "--bsr_coefficient", "0.1", "--lora_r", "4"),
    )
    assert arguments.data.dataset_name == ["a.jsonl", "b.jsonl"]
    assert arguments.data.eval_data == ["c.jsonl"]
    assert arguments.model.model_name_or_path == "m"
    assert arguments.model.lora_r == 4
    training = arguments.training
    assert (training.learning_rate, training.loss, training.weighting) == (3e-4, "scaled_bt", "batch")
    assert (training.distance, training.beta, training.eps) == ("cosine", 0.5, 1e-3)
    assert (training.max_weight, training.bsr_coefficient) == (None, 0.1)
    assert arguments.launch == []


def test_every_flag_of_trl_reward_is_accepted() -> None:
    from trl.scripts.reward import make_parser

    theirs = {option for action in make_parser()._actions for option in action.option_strings} - {"-h", "--help"}
    ours = {setting.flag for settings in describe_settings().values() for setting in settings}
    missing = {flag for flag in theirs if flag.startswith("--") and "-" not in flag[2:]} - ours
    assert {flag for flag in missing if not flag.startswith("--no_")} == set()
    assert len(theirs) > 200


def test_a_recipe_of_trl_runs_unchanged_and_flags_win(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE_OF_TRL, encoding="utf-8")
    for config in (["--config", str(recipe)], [f"--config={recipe}"]):
        arguments = parse_train_arguments([*config, "--max_length", "64", "--weighting", "none"])
        assert arguments.data.dataset_name == ["some/data"]
        assert arguments.training.learning_rate == 1e-5
        assert arguments.training.max_length == 64
        assert arguments.training.weighting == "none"
        assert arguments.model.use_peft


def test_settings_of_ours_are_yaml_keys_too(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("beta: 0.5\ndataset_name: [a.jsonl, b.jsonl]\nmax_weight: null\nbf16: false\n", encoding="utf-8")
    arguments = parse_train_arguments(["--config", str(recipe)])
    assert (arguments.training.beta, arguments.training.max_weight) == (0.5, None)
    assert arguments.data.dataset_name == ["a.jsonl", "b.jsonl"]


def test_a_mixture_is_read_as_trl_reads_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("bf16: false\ndatasets:\n  - path: json\n    data_files: a.jsonl\n", encoding="utf-8")
    (source,) = parse_train_arguments(["--config", str(recipe)]).mixture.datasets
    assert (source.path, source.data_files) == ("json", "a.jsonl")


def test_without_a_gpu_bf16_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normbt.config.is_torch_bf16_gpu_available", lambda: False)
    assert parse_train_arguments([]).training.bf16 is False
    with pytest.raises(ConfigError, match="bf16"):
        parse_train_arguments(["--bf16", "true"])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], r"Unknown setting --learning_rat; did you mean --learning_rate\?"),
        (["--weightin", "none"], r"--weightin; did you mean --weighting\?"),  # an abbreviation is not guessed at
        (["--num_proceses", "2"], r"did you mean --num_processes\?"),  # a setting of accelerate launch
        (["--xyzzy=3"], r"Unknown setting --xyzzy\."),
        (["stray"], "'stray' does not belong to any setting"),
        (["--loss", "bpr"], r"--loss: invalid choice: 'bpr' .*scaled_bt"),
        (["--beta", "x"], "--beta: invalid float value: 'x'"),
        (["--beta", "1.5"], r"beta must be in \[0, 1\), got 1.5"),
        (["--load_best_model_at_end"], "strategy"),  # raised by Transformers
        (["--config"], "--config needs the name"),
        (["--config", "none.yaml"], "Cannot read the settings file none.yaml: No such file"),
        (["--config", "a.yaml", "--config=b.yaml"], "given 2 times"),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("betta: 0.5", r"recipe.yaml: unknown setting betta; did you mean beta\?"),
        ("beta: 0.5\n  max_length: 8", r"recipe.yaml line 2: not valid YAML"),
        ("- beta", "one `setting: value` per line, found list"),
        ("", "found NoneType"),
        ("loss: bpr", "loss must be one of bt, scaled_bt"),
        ("datasets: [{pth: json}]", "unexpected keyword argument 'pth'"),
    ],
)
def test_mistakes_in_the_yaml_file(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(recipe))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        parse("--config", str(recipe))


def test_all_unknown_settings_are_named_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("betta: 0.5\nepss: 1", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(recipe), "--max_lenth", "8")
    assert [re.search(r"did you mean (\S+)\?", line)[1] for line in str(caught.value).splitlines()[:3]] == [
        "beta",
        "eps",
        "--max_length",
    ]


def test_a_mistake_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--learning-rat", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("normbt: Unknown setting --learning_rat; did you mean --learning_rate?\n")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "train"),
        (["doctor", "--dta", "x"], "--data"),
        (["doctor", "a", "b"], "unexpected extra argument"),
    ],
)
def test_typos_in_commands_and_flags_offer_the_nearest(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("normbt.arguments.parse_train_arguments", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/cache/pairs.arrow"),
            "left on device (/cache/pairs.arrow)",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "pairs.jsonl"), "Permission denied (pairs.jsonl)"),
        (MemoryError(), "the memory of the machine is used up"),
    ],
)
def test_a_fault_of_the_machine_is_one_message_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Exception, message: str
) -> None:
    def failing(argv: list[str]) -> None:
        raise fault

    monkeypatch.setattr("normbt.arguments.parse_train_arguments", failing)
    assert cli.main(["train"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_of_the_program_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert cli.main(argv) == 0
        printed = capsys.readouterr().out
        for command in command_names():
            assert command in printed


def command_names() -> list[str]:
    return [command.name or command.callback.__name__ for command in cli.app.registered_commands]


@pytest.mark.parametrize("command", command_names())
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Example" in printed
    assert f"normbt {command} " in printed


def test_help_of_train_shows_every_setting_of_ours_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    flags = re.findall(r"^│ (--\w+)", printed, flags=re.MULTILINE)
    described = describe_settings()
    assert flags == [setting.flag for settings in described.values() for setting in settings]
    assert {setting.flag for setting in described["NormBT"]} >= {"--loss", "--weighting", "--beta", "--max_weight"}
    assert len(flags) > 100
    inherited = {setting.flag for title, settings in described.items() if title != "NormBT" for setting in settings}
    assert f"--{next(iter(NormBTConfig.__annotations__))}" not in inherited
