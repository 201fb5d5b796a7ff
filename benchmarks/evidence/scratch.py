"""Is it an artefact of fixed features? A small decoder from random weights, trained whole by the package's own trainer.

    python -m benchmarks.evidence.scratch

Two layers in Llama's shape, a word-level tokenizer made from the training texts, the built-in pairs. Accuracy by
category against step, for BT, NormBT and NormBT with the relative distance, at each of the learning rates: there is no
choice among them, all are shown. The summary goes to docs/results/scratch.json; runs that it holds already are kept.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.evidence.summary import outcomes, write_sweep
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
from transformers.utils import logging

from normbt.config import NormBTConfig
from normbt.encoding import encode_pairs, prepare_tokenizer
from normbt.pairs import as_conversation
from normbt.scoring import score
from normbt.stats import pair_outcomes
from normbt.synthetic import generate_pairs
from normbt.trainer import NormBTTrainer
from normbt.weights import pair_distance

SUMMARY = Path("docs/results/scratch.json")

ARMS: dict[str, dict[str, Any]] = {
    "bt": {"weighting": "none"},
    "normbt": {"weighting": "normbt"},
    "relative": {"weighting": "normbt", "distance": "relative"},
}


@dataclass(frozen=True)
class Setting:
    """Sizes of the model, of the data and of the training."""

    train: int = 8_000
    test: int = 800
    hidden: int = 64
    layers: int = 2
    batch: int = 32
    epochs: int = 4
    watch: Sequence[int] = (30, 60, 120, 250, 500, 750, 1_000)


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Words, signs and single digits of the texts."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, min_frequency=2))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    prepare_tokenizer(found, conversational=True)
    return found


def encoded(setting: Setting) -> tuple[PreTrainedTokenizerFast, Dataset, Dataset]:
    """The tokenizer, the pairs to train on and the pairs to test on; no prompt is in both."""
    rows: list[dict[str, Any]] = []
    for pair in generate_pairs(setting.train + setting.test, seed=1):
        sides = {side: as_conversation(pair["prompt"], pair[side]) for side in ("chosen", "rejected")}
        row = {side: answer for side, (_, answer) in sides.items()}
        rows.append({"id": pair["id"], "category": pair["category"], "prompt": sides["chosen"][0], **row})
    training, testing = rows[: setting.train], rows[setting.train :]
    texts = [row[side][0]["content"] for row in training for side in ("prompt", "chosen", "rejected")]
    tokenizer = build_tokenizer([*texts, "User: Assistant:"])
    sets = [encode_pairs(Dataset.from_list(part), tokenizer, max_length=None)[0] for part in (training, testing)]
    return tokenizer, *sets  # type: ignore[return-value] - data sets, as none is a stream


class Watch(TrainerCallback):
    """Ranks the test pairs at some steps."""

    def __init__(self, pairs: Dataset, steps: Sequence[int]) -> None:
        self.pairs, self.steps = pairs, set(steps)
        self.right: dict[int, np.ndarray] = {}
        self.distance: dict[int, np.ndarray] = {}

    def look(self, model: Any, step: int) -> None:
        """Rank the pairs now."""
        sequences = [*self.pairs["chosen_ids"][:], *self.pairs["rejected_ids"][:]]
        # Padded, because the trainer holds the model in its own packed layout at this moment.
        scores = score(model, sequences, pack=False, keep_hidden=True)
        assert scores.hidden is not None
        self.right[step] = np.asarray(pair_outcomes(*np.split(scores.rewards, 2)).correct, dtype=np.bool_)
        self.distance[step] = pair_distance(*scores.hidden.chunk(2)).numpy()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look where it was asked for, and at the end."""
        if state.global_step in self.steps or state.global_step == state.max_steps:
            self.look(model, state.global_step)


def run(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Dataset,
    tested: Dataset,
    setting: Setting,
    *,
    arm: Mapping[str, Any],
    rate: float,
    seed: int,
) -> Watch:
    """Train one model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=setting.hidden,
        intermediate_size=4 * setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    model = LlamaForSequenceClassification(config)
    watch = Watch(tested, setting.watch)
    watch.look(model, 0)
    with tempfile.TemporaryDirectory() as folder:
        settings = NormBTConfig(
            folder,
            learning_rate=rate,
            seed=seed,
            per_device_train_batch_size=setting.batch,
            num_train_epochs=setting.epochs,
            max_length=None,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **arm,
        )
        trainer = NormBTTrainer(model, settings, train_dataset=pairs, processing_class=tokenizer, callbacks=[watch])
        trainer.train()
    return watch


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SUMMARY)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    setting = Setting()
    tokenizer, pairs, tested = encoded(setting)
    category = np.array(tested["category"][:])
    masks = {"all": np.ones(len(category), dtype=np.bool_)}
    masks |= {str(name): category == name for name in dict.fromkeys(category.tolist())}
    about = {"command": "python -m benchmarks.evidence.scratch"}
    runs: list[dict[str, Any]] = []
    if arguments.output.is_file():
        runs = json.loads(arguments.output.read_text())["sweeps"]["scratch"]["runs"]
    for rate in arguments.rates:
        for seed in arguments.seeds:
            for name in arguments.arms:
                key = {"arm": name, "rate": rate, "seed": seed}
                if any(key.items() <= one.items() for one in runs):
                    continue
                began = time.monotonic()
                watch = run(tokenizer, pairs, tested, setting, arm=ARMS[name], rate=rate, seed=seed)
                points = {
                    str(step): {kind: values[0] for kind, values in outcomes(right[None], masks).items()}
                    for step, right in watch.right.items()
                }
                first = {kind: round(float(np.median(watch.distance[0][mask])), 4) for kind, mask in masks.items()}
                runs.append({**key, "points": points, "median_distance_at_start": first})
                runs.sort(key=lambda one: (one["rate"], list(ARMS).index(one["arm"]), one["seed"]))
                sizes = {**asdict(setting), "vocabulary": len(tokenizer)}
                write_sweep(arguments.output, "scratch", {"settings": sizes, "runs": runs}, about=about)
                print(key, points[max(points, key=int)], f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
