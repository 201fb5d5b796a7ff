"""Read pairs once through the packaged MiniLM and keep what a head could read: the features of every sweep.

    python -m benchmarks.evidence.features built-in --output runs/evidence/built-in.npz
    python -m benchmarks.evidence.features real --data ../shared/data --output runs/evidence/real.npz

The encoder stays as it is; only heads are trained on what it gives, so a sweep of hundreds of runs takes minutes. The
file holds numbers and names, no text of a pair.
"""

import argparse
import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from normbt.encoding import encode_conversations, prepare_tokenizer
from normbt.packaged_encoder import PACKAGED_ENCODER, locate_model
from normbt.pairs import as_conversation, read_pairs
from normbt.suites.clusters import prompt_cluster, prompt_text
from normbt.suites.rewardbench import RewardBench
from normbt.synthetic import generate_pairs

MAX_LENGTH = 256
BATCH_TOKENS = 2_048

BUILT_IN = {"train": 6_000, "validation": 2_000, "test": 4_000}
"""Pairs of each share, the four categories in turn; no prompt occurs twice."""

REAL = {
    "hh_rlhf_test": {"pool": 1_200, "test": 500},
    "gsm8k_solutions": {"pool": 1_200, "test": 500},
    "arena55k_subset": {"pool": 700, "test": 250},
    "ultrafeedback_1k": {"pool": 300, "test": 101},
    "codexglue_refine": {"pool": 1_000, "test": 400},
}
"""Pairs drawn of each file: from its train split, of which prompts give validation and the rest training, and from its
test split. codexglue_refine has one prompt and no test split: it is divided by a hash of the pair's id."""

VALIDATION_SHARE = 0.125


class Pairs(NamedTuple):
    """Features of pairs, and what is known about each; arrays have one entry per pair.

    Attributes:
        mean: mean of the last hidden states, what MiniLM was trained to give, shape ``(pairs, 2, 384)``, chosen first.
        pooled: what the head of the sequence classifier reads, same shape.
        tokens: length of both sequences, shape ``(pairs, 2)``.
        share: ``train``, ``validation``, ``test`` or ``rewardbench``.
        category: as the data name it.
        subset: RewardBench's subset; the file for others.
        cluster: pairs of one cluster are right and wrong together.
        margin: strength of the preference; NaN where there is none.
    """

    mean: NDArray[np.float32]
    pooled: NDArray[np.float32]
    tokens: NDArray[np.int32]
    share: NDArray[np.str_]
    category: NDArray[np.str_]
    subset: NDArray[np.str_]
    cluster: NDArray[np.str_]
    margin: NDArray[np.float32]

    def only(self, share: str) -> "Pairs":
        """The pairs of one share."""
        return Pairs(*(column[self.share == share] for column in self))


def load(path: Path) -> Pairs:
    """What :func:`save` wrote."""
    with np.load(path) as columns:
        return Pairs(**{name: columns[name] for name in Pairs._fields})


def save(path: Path, pairs: Pairs) -> None:
    """Write the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **pairs._asdict())


def extract(rows: Sequence[Mapping[str, Any]], *, max_length: int = MAX_LENGTH) -> Pairs:
    """Features of pairs.

    Args:
        rows: with ``prompt``, ``chosen``, ``rejected``, ``share``, ``category``, ``subset``, ``cluster``, and
            ``margin`` where there is one.
        max_length: tokens; longer sequences lose the beginning of the prompt, then the end of the answer.
    """
    tokenizer = AutoTokenizer.from_pretrained(locate_model(PACKAGED_ENCODER))
    prepare_tokenizer(tokenizer, conversational=True)
    model = AutoModel.from_pretrained(locate_model(PACKAGED_ENCODER)).eval()
    conversations = []
    for row in rows:
        for side in ("chosen", "rejected"):
            prompt, answer = as_conversation(row["prompt"], row[side])
            conversations.append(prompt + answer)
    ids, cut = encode_conversations(tokenizer, conversations, max_length=max_length)
    mean, pooled = states(model, ids, pad=tokenizer.pad_token_id or 0)
    print(f"{len(rows):,} pairs, {sum(map(len, ids)):,} tokens, {sum(cut):,} of {len(ids):,} sequences cut")

    def names(key: str) -> NDArray[np.str_]:
        return np.array([str(row[key]) for row in rows])

    return Pairs(
        mean=mean.reshape(len(rows), 2, -1),
        pooled=pooled.reshape(len(rows), 2, -1),
        tokens=np.array([len(one) for one in ids], dtype=np.int32).reshape(-1, 2),
        share=names("share"),
        category=names("category"),
        subset=names("subset"),
        cluster=names("cluster"),
        margin=np.array([row.get("margin", np.nan) for row in rows], dtype=np.float32),
    )


@torch.inference_mode()
def states(model: Any, ids: Sequence[Sequence[int]], *, pad: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the last hidden states, and the pooler's output, of each sequence; longest first, padded on the right."""
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    mean = np.zeros((len(ids), model.config.hidden_size), dtype=np.float32)
    pooled = np.zeros_like(mean)
    start, began = 0, time.monotonic()
    while start < len(order):
        rows = order[start : start + max(1, BATCH_TOKENS // len(ids[order[start]]))]
        longest = len(ids[rows[0]])
        tokens = torch.full((len(rows), longest), pad)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(rows):
            tokens[place, : len(ids[row])] = torch.tensor(ids[row])
            mask[place, : len(ids[row])] = 1
        found = model(input_ids=tokens, attention_mask=mask)
        kept = mask.unsqueeze(-1)
        mean[rows] = ((found.last_hidden_state * kept).sum(1) / kept.sum(1)).numpy()
        pooled[rows] = found.pooler_output.numpy()
        start += len(rows)
        if len(order) > 1_000 and start % 500 < len(rows):
            print(f"  {start:,} of {len(ids):,} sequences, {time.monotonic() - began:.0f} s", flush=True)
    return mean, pooled


def built_in_rows(sizes: Mapping[str, int] = BUILT_IN, *, seed: int = 0) -> list[dict[str, Any]]:
    """Built-in pairs with their share."""
    pairs = generate_pairs(sum(sizes.values()), seed=seed)
    shares = [share for share, size in sizes.items() for _ in range(size)]
    rows = [
        dict(pair, share=share, subset=pair["category"], cluster=prompt_cluster(str(pair["prompt"])))
        for pair, share in zip(pairs, shares, strict=True)
    ]
    assert len({row["cluster"] for row in rows}) == len(rows), "a prompt occurs twice"
    return rows


def real_rows(folder: Path, *, seed: int = 0) -> list[dict[str, Any]]:
    """Real pairs with their share: the files of :data:`REAL`, and all of RewardBench."""
    rows: list[dict[str, Any]] = []
    for name, sizes in REAL.items():
        path = str(folder / f"{name}.jsonl.gz")
        if name == "codexglue_refine":
            pairs = [dict(pair) for pair in read_pairs(path)[0]]
            drawn = random.Random(seed).sample(pairs, sizes["pool"] + sizes["test"])
            drawn.sort(key=lambda pair: _share_of(pair["id"]))
            taken = {"test": drawn[: sizes["test"]], "pool": drawn[sizes["test"] :]}
        else:
            taken = {}
            for share, split in (("pool", "train"), ("test", "test")):
                pairs = [dict(pair) for pair in read_pairs(path, split=split)[0]]
                taken[share] = random.Random(seed).sample(pairs, min(sizes[share], len(pairs)))
        for share, pairs in taken.items():
            for pair in pairs:
                one_prompt = name == "codexglue_refine"
                cluster = f"pair-{pair['id']}" if one_prompt else prompt_cluster(prompt_text(pair) or "")
                if share == "pool":
                    held_out = _share_of("validation" + cluster) < VALIDATION_SHARE
                    pair["share"] = "validation" if held_out else "train"
                else:
                    pair["share"] = "test"
                rows.append(pair | {"subset": name, "cluster": cluster})
    trained_on = {row["cluster"] for row in rows if row["share"] != "test"}
    rows = [row for row in rows if row["share"] != "test" or row["cluster"] not in trained_on]
    items, _ = RewardBench().read(folder / "rewardbench.jsonl.gz", None)
    for item in items:
        rows.append(
            {
                "prompt": item.prompt,
                "chosen": item.chosen[0],
                "rejected": item.rejected[0],
                "share": "rewardbench",
                "category": item.category,
                "subset": item.subset,
                "cluster": item.cluster_id,
            }
        )
    return rows


def _share_of(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def main() -> None:
    """Extract one of the two sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["built-in", "real"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real pairs")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = built_in_rows() if arguments.what == "built-in" else real_rows(arguments.data)
    save(arguments.output, extract(rows))


if __name__ == "__main__":
    main()
