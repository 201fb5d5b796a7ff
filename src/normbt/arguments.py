"""What `normbt train` can be told: the settings of `trl reward`, ours beside them, and those of `accelerate launch`.

TRL's own parser reads them, so a setting means here what it means there. What it does in silence becomes a message:
an unknown name is refused with the nearest one offered, and a flag is never taken for another that it abbreviates.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from trl import DatasetMixtureConfig, ModelConfig, RewardConfig, ScriptArguments, TrlParser

from normbt.config import NormBTConfig
from normbt.errors import ConfigError

ACCELERATE_CONFIG = "accelerate_config"
"""TRL's setting for the launcher: a file, or the name of a configuration that TRL ships."""

_SEE_HELP = "`normbt train --help` lists every setting."


@dataclass
class DataArguments(ScriptArguments):
    """TRL's data settings; a data set may also be one or more files or folders, and so may the evaluation data."""

    dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Preference data: a file (.json, .jsonl, .csv, .parquet, also .gz), a folder, or a Hub name; "
            "several are joined. Ignored, with a warning, where the YAML file has `datasets`."
        },
    )
    eval_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Preference data for evaluation, in the same forms as `dataset_name`: every row of a file, the "
            "split `dataset_test_split` of a folder or Hub data set. With `eval_strategy` 'no' it is used once, after "
            "training. Without it, `eval_strategy` evaluates on `dataset_test_split` of the training data."
        },
    )

    def __post_init__(self) -> None:
        # A YAML file may give one name without making a list of it, as it does for `trl reward`.
        if isinstance(self.dataset_name, str):
            self.dataset_name = [self.dataset_name]
        if isinstance(self.eval_data, str):
            self.eval_data = [self.eval_data]


class TrainArguments(NamedTuple):
    """The settings of one training run.

    Attributes:
        data: which data to read.
        training: how to train.
        model: which model to start from, PEFT and quantisation.
        mixture: TRL's data mixture, from the YAML key `datasets`.
        launch: arguments for `accelerate launch`, in its own spelling; empty when none were given.
        command_line: the arguments without those of `accelerate launch`.
    """

    data: DataArguments
    training: NormBTConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    launch: list[str]
    command_line: list[str]


class Setting(NamedTuple):
    """One line of the help page."""

    flag: str
    default: object
    choices: tuple[object, ...]
    help: str


class _Parser(TrlParser):
    """TRL's parser with errors raised instead of printed, and no guessing from abbreviations."""

    def __init__(self) -> None:
        parts: Any = (DataArguments, NormBTConfig, ModelConfig, DatasetMixtureConfig)  # TRL's own type takes no class
        super().__init__(parts, allow_abbrev=False, add_help=False)
        if not torch.accelerator.is_available():
            # Without an accelerator this default of Transformers does nothing but warn at every data loader.
            self.set_defaults(dataloader_pin_memory=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. {_SEE_HELP}")


def parse_train_arguments(argv: Sequence[str]) -> TrainArguments:
    """Parse the command line of `normbt train`.

    Args:
        argv: everything after `normbt train`, flags spelled with underscores.

    Returns:
        The settings of the run.

    Raises:
        ConfigError: a name is unknown (with the nearest one), a value is of the wrong kind or out of range, or the
            YAML file is missing or not a mapping. Every unknown name is reported at once.
    """
    config_file, argv = _take_config_file(argv)
    parser = _Parser()
    _, for_launcher = parser.parse_known_args(argv)
    _refuse_unknown(parser, for_launcher, _read_settings(config_file) if config_file else {}, config_file)
    with_config = ["--config", config_file, *argv] if config_file else argv
    try:
        data, training, model, mixture, from_file, _ = parser.parse_args_and_config(
            with_config, return_remaining_strings=True, separate_remaining_strings=True
        )
    except ValueError as error:  # what Transformers and TRL raise for settings that do not fit each other
        raise ConfigError(str(error)) from error
    except TypeError as error:  # an entry of `datasets` with an unknown key, or a YAML value of the wrong kind
        raise ConfigError(f"{config_file}: {error}.") from error
    return TrainArguments(data, training, model, mixture, from_file + for_launcher, _without(with_config, for_launcher))


def describe_settings() -> dict[str, list[Setting]]:
    """Every setting of `normbt train` by group, ours first, for the help page."""
    reward_fields = {field.name for field in dataclasses.fields(RewardConfig)}
    groups = {
        "NormBT": {field.name for field in dataclasses.fields(NormBTConfig)} - reward_fields,
        "Data": {field.name for kind in (DataArguments, DatasetMixtureConfig) for field in dataclasses.fields(kind)},
        "Model": {field.name for field in dataclasses.fields(ModelConfig)},
        "Reward training (as in TRL)": reward_fields & set(vars(RewardConfig).get("__annotations__", {})),
        "Training (as in Transformers)": reward_fields,
    }
    described: dict[str, list[Setting]] = {title: [] for title in groups}
    seen: set[str] = set()
    for title, names in groups.items():
        for action in _Parser()._actions:
            if action.dest in names and action.dest not in seen:
                seen.add(action.dest)
                text = (action.help or "").replace("%%", "%")
                described[title].append(
                    Setting(action.option_strings[0], action.default, tuple(action.choices or ()), text)
                )
    return described


def _take_config_file(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--config`, also as `--config=FILE` which TRL's parser does not know, and the other arguments."""
    files: list[str] = []
    others: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            files.append(next(arguments, ""))
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    if len(files) > 1:
        raise ConfigError(f"--config was given {len(files)} times. Put the settings into one file.")
    if files and (not files[0] or files[0].startswith("--")):
        raise ConfigError("--config needs the name of a YAML file.")
    return (files[0] if files else None), others


def _read_settings(config_file: str) -> dict[str, Any]:
    """Read the YAML file as TRL will, once before it does: for the messages."""
    try:
        settings = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the settings file {config_file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{config_file} is not UTF-8 text ({error.reason}). Is it a YAML file?") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{config_file}{where}: not valid YAML ({problem or error}).") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{config_file}: wanted one `setting: value` per line, found {type(settings).__name__}.")
    return settings


def _refuse_unknown(
    parser: TrlParser, remaining: Sequence[str], settings: Mapping[str, Any], config_file: str | None
) -> None:
    """Refuse what neither TRL's settings nor ours nor `accelerate launch` know, all of it at once."""
    ours = sorted(action.dest for action in parser._actions)
    launcher = sorted({action.dest for action in launch_command_parser()._actions} - {"help"})
    launcher_flags = {option for action in launch_command_parser()._actions for option in action.option_strings}
    known = {*ours, *launcher, ACCELERATE_CONFIG, "env"}

    def suggestion(name: str) -> str:
        nearest = difflib.get_close_matches(name, [*ours, *launcher], 1)
        return nearest[0] if nearest else ""

    problems: list[str] = []
    for name in settings:
        if name not in known:
            hint = f"; did you mean {suggestion(str(name))}?" if suggestion(str(name)) else "."
            problems.append(f"{config_file}: unknown setting {name}{hint}")
    after_flag = False
    for argument in remaining:
        flag = argument.split("=", 1)[0]
        if not flag.startswith("--"):
            if not after_flag:
                problems.append(f"{argument!r} does not belong to any setting.")
            continue
        after_flag = True
        name = flag.removeprefix("--")
        if flag not in launcher_flags and name != ACCELERATE_CONFIG:
            hint = f"; did you mean --{suggestion(name)}?" if suggestion(name) else "."
            problems.append(f"Unknown setting {flag}{hint}")
    if problems:
        raise ConfigError("\n".join([*problems, _SEE_HELP]))


def _without(argv: Sequence[str], removed: Sequence[str]) -> list[str]:
    """`argv` without the arguments of `removed`, which stand in it in the same order."""
    pending = iter(removed)
    next_removed = next(pending, None)
    kept: list[str] = []
    for argument in argv:
        if argument == next_removed:
            next_removed = next(pending, None)
        else:
            kept.append(argument)
    return kept
