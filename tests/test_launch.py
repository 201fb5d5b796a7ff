"""The launcher's configurations that the package ships: all of them are found by name and are what Accelerate reads."""

from pathlib import Path

import pytest

pytest.importorskip("trl")

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from normbt.launch import SHIPPED_CONFIGS, with_shipped_config

FOLDER = Path(__file__).parents[1] / "src" / "normbt" / "recipes" / "accelerate"
KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def test_the_names_are_the_files():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(SHIPPED_CONFIGS) == sorted(KINDS)


@pytest.mark.parametrize("name", SHIPPED_CONFIGS)
@pytest.mark.parametrize("spelled", ["--accelerate_config {}", "--accelerate_config={}"])
def test_a_shipped_configuration_is_found_by_name(name, spelled):
    arguments = with_shipped_config([*spelled.format(name).split(), "--num_processes", "4"])
    words = resolve_accelerate_config_argument(arguments)
    config = load_config_from_file(words[words.index("--config_file") + 1])
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "bf16"
    settings = config.fsdp_config or config.deepspeed_config or {}
    wanted = {"fsdp2": ("fsdp_version", 2), "zero2": ("zero_stage", 2), "zero3": ("zero_stage", 3)}
    if name in wanted:
        key, value = wanted[name]
        assert settings[key] == value
    assert config.num_machines == 1


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])  # Accelerate refuses the others before DeepSpeed is installed
def test_the_launcher_takes_it(name):
    words = resolve_accelerate_config_argument(with_shipped_config(["--accelerate_config", name]))
    parsed = launch_command_parser().parse_args([*words, "--module", "normbt", "train"])
    parsed, _, _ = _validate_launch_command(parsed)
    assert parsed.num_processes == 1  # a machine without GPUs
    assert parsed.use_fsdp == (name == "fsdp2")


def test_other_files_and_trls_names_are_left_to_trl():
    for words in (["--accelerate_config", "multi_gpu"], ["--num_processes", "2"], ["--accelerate_config"]):
        assert with_shipped_config(words) == words
