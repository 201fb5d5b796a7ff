"""Run a module of OpenRLHF on a CPU: its own trainer on DeepSpeed's own engine, with stand-ins for what needs a GPU.

    python openrlhf_on_cpu.py LOGS MODULE [flags of the module]

OpenRLHF imports flash-attn, which cannot be built without CUDA, for packed rows alone, and it asks for CUDA devices by
name. What each step logs is written to LOGS, one JSON object per line.
"""

import json
import os
import runpy
import socket
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["MASTER_PORT"] = str(free.getsockname()[1])
os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}

import torch
from torch.distributed import device_mesh


def absent(*_args, **_settings):
    raise RuntimeError("flash-attn is not here")


for name in ("flash_attn", "flash_attn.utils", "flash_attn.utils.distributed", "flash_attn.bert_padding"):
    sys.modules[name] = module_from_spec(ModuleSpec(name, None))
sys.modules["flash_attn.utils.distributed"].all_gather = absent
for name in ("index_first_axis", "pad_input", "rearrange", "unpad_input"):
    setattr(sys.modules["flash_attn.bert_padding"], name, absent)

torch.cuda.set_device = lambda *_: None
torch.cuda.synchronize = lambda *_: None
torch.cuda.current_device = lambda: torch.device("cpu")
mesh_of = device_mesh.init_device_mesh
device_mesh.init_device_mesh = lambda _, *sizes, **settings: mesh_of("cpu", *sizes, **settings)

from openrlhf.trainer.rm_trainer import RewardModelTrainer  # noqa: E402 - after the stand-ins

logs, module = Path(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
save = RewardModelTrainer.save_logs_and_checkpoints


def save_and_log(self, args, global_step, step_bar, logs_dict=None, client_states=None):
    line = {"step": global_step} | {name: float(value) for name, value in logs_dict.items()}
    with logs.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    return save(self, args, global_step, step_bar, logs_dict, client_states)


RewardModelTrainer.save_logs_and_checkpoints = save_and_log
runpy.run_module(module, run_name="__main__")
