"""Start `normbt train` under `accelerate launch` where more than one process, or a launcher's setting, is wanted.

`trl reward` always goes through the launcher; one process without settings for it does not need to.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.commands.config import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from normbt.arguments import ACCELERATE_CONFIG, TrainArguments
from normbt.errors import ConfigError

_SHIPPED = Path(__file__).parent / "recipes" / "accelerate"
SHIPPED_CONFIGS = ("ddp", "fsdp2", "zero2", "zero3")
"""Names for ``--accelerate_config``; each is a file of this package."""

# One of these is set in every process that `accelerate launch` or `torchrun` starts.
_SET_BY_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK")


def needs_launcher(arguments: TrainArguments) -> bool:
    """Whether this process should start others instead of training itself.

    That is so where settings for the launcher were given, `accelerate config` has been run, or there are several GPUs
    to use; never inside a process that a launcher has started.
    """
    if any(name in os.environ for name in _SET_BY_LAUNCHERS):
        return False
    several_gpus = torch.cuda.device_count() > 1 and not arguments.training.use_cpu
    return bool(arguments.launch) or several_gpus or Path(default_config_file).is_file()


def launch(arguments: TrainArguments) -> int:
    """Train in the processes that `accelerate launch` starts, and wait for them.

    Args:
        arguments: the parsed command line; `launch` goes to the launcher, the rest to each process.

    Returns:
        The exit status: 0, or that of the first process that failed.

    Raises:
        ConfigError: the launcher does not accept its arguments.
    """
    parser = launch_command_parser()
    parser.error = _refuse
    try:
        launch_arguments = resolve_accelerate_config_argument(with_shipped_config(arguments.launch))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    module = ["--module", "normbt", "train", *arguments.command_line]
    try:
        launch_command(parser.parse_args([*launch_arguments, *module]))
    except subprocess.CalledProcessError as error:  # one process; it has said what is wrong
        return error.returncode
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode
    return 0


def with_shipped_config(launch_arguments: Sequence[str]) -> list[str]:
    """The launcher's arguments with the file of a configuration of ours in the place of its name.

    Ours name no number of processes, which is then that of the GPUs.

    Args:
        launch_arguments: in the spelling of `accelerate launch`, and ``--accelerate_config``.

    Returns:
        The arguments; other files and the names that TRL ships are left for TRL to resolve.

    Example:
        >>> with_shipped_config(["--accelerate_config", "mine.yaml", "--num_processes", "2"])
        ['--accelerate_config', 'mine.yaml', '--num_processes', '2']
    """
    flag = f"--{ACCELERATE_CONFIG}"
    words = [
        part for word in launch_arguments for part in (word.split("=", 1) if word.startswith(f"{flag}=") else [word])
    ]
    if flag not in words[:-1]:
        return words
    place = words.index(flag) + 1
    if words[place] not in SHIPPED_CONFIGS or Path(words[place]).is_file():
        return words
    words[place] = str(_SHIPPED / f"{words[place]}.yaml")
    if not any(word.split("=", 1)[0] in ("--num_processes", "--num-processes") for word in words):
        words += ["--num_processes", str(max(1, torch.cuda.device_count()))]
    return words


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"accelerate launch: {message}.")
