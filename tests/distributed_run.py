"""One training run of a tiny model, in as many processes as it is launched with; the main one writes what came out.

Run by test_distributed.py: ``python -m torch.distributed.run --nproc_per_node 2 distributed_run.py SETTINGS OUT``.
"""

import json
import sys
from pathlib import Path

import torch

from normbt.config import NormBTConfig
from normbt.trainer import NormBTTrainer
from test_reliability import poisoned_model, poisoned_pairs
from test_trainer import settings, word_pairs, word_tokenizer
from tiny import tiny_model


def main(runs: dict[str, dict], folder: Path) -> None:
    for name, changes in runs.items():
        pairs, poisoned = changes.pop("pairs"), changes.pop("poisoned", False)
        trainer = NormBTTrainer(
            poisoned_model() if poisoned else tiny_model("llama"),
            NormBTConfig(**settings(folder / name, max_steps=-1, num_train_epochs=1, **changes)),
            train_dataset=poisoned_pairs(pairs) if poisoned else word_pairs(pairs),
            eval_dataset={"held-out": word_pairs(7, seed=5)},
            processing_class=word_tokenizer(),
        )
        trainer.train()
        metrics = trainer.evaluate()
        if trainer.is_world_process_zero():
            kept = ("loss", "mu", "distance", "accuracy", "num_tokens", "weight_q50")
            kept += ("skipped_steps", "nonfinite_pairs") if poisoned else ()
            log = [{key: entry[key] for key in kept} for entry in trainer.state.log_history if "mu" in entry]
            metrics = {key: value for key, value in metrics.items() if "held-out" in key and "per_second" not in key}
            metrics = {key: value for key, value in metrics.items() if "runtime" not in key and "prep" not in key}
            torch.save(trainer.model.state_dict(), folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps({"log": log, "metrics": metrics}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
