"""Start `normbt train` under `accelerate launch` where more than one process, or a launcher's setting, is wanted.

`trl reward` always goes through the launcher; one process without settings for it does not need to.
"""

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.commands.config import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from normbt.arguments import TrainArguments
from normbt.errors import ConfigError

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
        launch_arguments = resolve_accelerate_config_argument(arguments.launch)
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


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"accelerate launch: {message}.")
