"""Results as the jobs write them, from generated numbers: for the tests and benchmarks of the report.

The statistics of a diagnosis come from the functions that `normbt diagnose` uses, so that a summary fits its pairs.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normbt.bias import PairNumbers, prediction_error, summarise
from normbt.results import SCHEMA_VERSION, provenance, write_json, write_jsonl
from normbt.synthetic import generate_pairs

SPREAD = {"chat": 5.0, "chat_hard": 3.0, "safety": 4.5, "reasoning": 0.25}
"""Typical distance of each category of the generated pairs."""

NASTY = [
    {"id": "script", "prompt": "<script>alert('prompt')</script>", "chosen": "</script><img src=x onerror=alert(1)>"},
    {"id": "entities", "prompt": "&lt;b&gt; &amp; <b>bold</b>", "chosen": "\"quotes\" 'single' `back` ${x} {{ y }}"},
    {
        "id": "separators",
        "prompt": "line\u2028separator\u2029paragraph",
        "chosen": "nul \x00 and bell \x07 and \ufeffmark",
    },
    {"id": "rtl", "prompt": "ما هي عاصمة فرنسا؟", "chosen": "عاصمة فرنسا هي باريس 🇫🇷 \u202eevil"},
    {"id": "<i>id</i>&#x27;\u2028", "prompt": "日本語の文章です。", "chosen": "👩‍👩‍👧‍👦 家族 e\u0301"},
]
"""Texts that a careless page would run, swallow or turn around."""


def write_diagnosis(
    folder: Path,
    pairs: int,
    *,
    seed: int = 0,
    steepness: float = 0.9,
    nasty: bool = False,
    words: int = 0,
    **changes: Any,
) -> Path:
    """Write the files of a diagnosis of generated pairs; ``words`` more are added to each answer."""
    rng = np.random.default_rng(seed)
    texts = [dict(row) for row in generate_pairs(min(pairs, 2_000), seed=0)]
    category_of = np.array([texts[i % len(texts)]["category"] for i in range(pairs)], dtype=object)
    typical = np.array([SPREAD[name] for name in category_of])
    distance = typical * rng.lognormal(0, 0.5, pairs)
    margin = rng.normal(0.4, 1.0, pairs) * np.sqrt(distance)
    error = prediction_error(margin)
    backbone = 6 * distance**steepness * rng.lognormal(0, 0.25, pairs)
    norm = np.hypot(distance, backbone)
    weight = np.minimum(distance.mean() / (distance + 1e-6), 10.0)
    names = sorted(set(category_of.tolist()))
    numbers = PairNumbers(
        error=error,
        misranked=margin <= 0,
        distance=distance,
        distance_relative=distance / 9,
        distance_cosine=(distance / 9) ** 2 / 2,
        weight=weight,
        gradient_norm=norm,
        gradient_norm_head=distance,
        gradient_norm_backbone=backbone,
        cluster=np.arange(pairs),
        category=np.array([names.index(name) for name in category_of]),
        categories=names,
    )

    def rows() -> Iterator[dict[str, Any]]:
        vocabulary = np.array([f"word{i}" for i in range(5_000)])
        for i in range(pairs):
            row = texts[i % len(texts)]
            extra = "" if not words else " " + " ".join(rng.choice(vocabulary, words))
            shown = {"id": f"pair-{i}", "prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
            shown |= {"chosen": shown["chosen"] + extra, "rejected": shown["rejected"] + extra} if extra else {}
            if nasty and i < len(NASTY):
                shown |= {**NASTY[i], "rejected": NASTY[i]["chosen"] + " not"}
            yield {
                **shown,
                "source": "generated",
                "category": category_of[i],
                "subset": f"{category_of[i]}-{i % 2}",
                "reward_chosen": margin[i],
                "reward_rejected": 0.0,
                "margin_reward": margin[i],
                "error": error[i],
                "misranked": bool(margin[i] <= 0),
                "tie": False,
                "distance": distance[i],
                "distance_relative": numbers.distance_relative[i],
                "distance_cosine": numbers.distance_cosine[i],
                "weight": weight[i],
                "gradient_norm": norm[i],
                "gradient_norm_head": distance[i],
                "gradient_norm_backbone": backbone[i],
                "update_bt": numbers.update_bt[i],
                "update_normbt": numbers.update_normbt[i],
                "n_tokens_chosen": 30 + i % 7,
                "n_tokens_rejected": 30,
                "similarity": 0.5,
                "truncated": i % 50 == 0,
            }

    written = write_jsonl(folder / "pairs.jsonl", rows())
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": "diagnosis",
        "model": "tiny/model",
        "total_pairs": pairs,
        "sampled_pairs": pairs,
        "seed": None,
        "mu": float(distance.mean()),
        "eps": 1e-6,
        "max_weight": 10.0,
        "clipped": int((weight >= 10).sum()),
        "misranked": int(numbers.misranked.sum()),
        "ties": 0,
        "non_finite": 0,
        "truncated": -(-pairs // 50),
        "method": {
            "asked": "auto",
            "used": "ghost",
            "reason": "every layer is known",
            "pairs_ghost": pairs,
            "pairs_exact": 0,
            "batch_tokens": 4096,
            "parameters": 22_000_000,
        },
        "self_check": {
            "pairs": 4,
            "max_relative_error": 1e-7,
            "tolerance": 1e-4,
            "passed": True,
            "message": "4 pairs agree with one backward pass each to 1e-07.",
        },
        **summarise(numbers, resamples=100 if pairs > 20_000 else 300),
        "without_category": 0,
        "confidence": 0.95,
        "resamples": 300,
        "peak_memory_bytes": None,
        "peak_gpu_memory_bytes": None,
        "inference": inference(),
        "pairs_sha256": written.sha256,
        "provenance": provenance(config={"model": "tiny/model"}, seed=seed),
        **changes,
    }
    write_json(folder / "summary.json", summary)
    return folder


def write_evaluation(folder: Path, pairs: int = 60, *, shift: float = 0.5, suite: str = "pairs") -> Path:
    """Write the files of an evaluation of generated pairs."""
    rng = np.random.default_rng(3)
    gap = rng.normal(shift, 1.0, pairs)
    names = list(SPREAD)
    rows = [
        {
            "id": f"pair-{i}",
            "source": None,
            "category": names[i % 4],
            "subset": None,
            "cluster_id": str(i),
            "score_chosen": float(gap[i]),
            "score_rejected": 0.0,
            "correct": bool(gap[i] > 0),
            "tie": False,
            "distance": 1.0 + i,
            "n_tokens_chosen": 10,
            "n_tokens_rejected": 12,
            "truncated": False,
            "n_characters_chosen": 40,
            "n_characters_rejected": 50,
        }
        for i in range(pairs)
    ]
    written = write_jsonl(folder / "pairs.jsonl", rows)

    def score(members: np.ndarray) -> dict[str, Any]:
        value = float((gap[members] > 0).mean())
        ends = {"low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}
        counts = {"pairs": int(members.sum()), "clusters": int(members.sum()), "correct": int((gap[members] > 0).sum())}
        wilson = {"wilson_low": ends["low"], "wilson_high": ends["high"]}
        return {
            "value": value,
            **ends,
            **wilson,
            "length_only": 0.45,
            **counts,
            "ties": 0,
            "non_finite": 0,
            "truncated": 0,
        }

    everyone = np.ones(pairs, dtype=bool)
    by_category = {name: score(np.arange(pairs) % 4 == place) for place, name in enumerate(names)}
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "model": "tiny/model",
        "suite": suite,
        "tie_policy": "wrong",
        "headline": "accuracy",
        "score": score(everyone),
        "accuracy": score(everyone),
        "sections": {},
        "categories": by_category,
        "subsets": {},
        "sources": {},
        "details": {},
        "coverage": None,
        "determinism": None,
        "training_seed": None,
        "records_file": "pairs.jsonl",
        "confidence": 0.95,
        "resamples": 100,
        "inference": inference(),
        "pairs_sha256": written.sha256,
        "provenance": provenance(config={}, seed=0),
    }
    write_json(folder / "summary.json", summary)
    return folder


def inference() -> dict[str, Any]:
    return {
        "dtype": "float32",
        "device": "cpu",
        "attention": "sdpa",
        "max_length": 256,
        "batch_tokens": 4096,
        "batching": "padded",
        "template": "none",
        "untrained_head": False,
    }


def write_training(folder: Path, steps: int = 100, *, weighted: bool = True, seed: int = 0) -> Path:
    """Write a trainer's state with the metrics that NormBT logs, and two evaluations."""
    rng = np.random.default_rng(seed)
    log: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        done = step / steps
        row = {"step": step, "epoch": done, "loss": 0.69 - 0.3 * done + rng.normal(0, 0.05)}
        row |= {"loss_unweighted": row["loss"] + 0.01, "loss_weighted": row["loss"], "accuracy": 0.5 + 0.3 * done}
        for third, gain in (("near", 0.1), ("mid", 0.3), ("far", 0.45)):
            row[f"accuracy_{third}"] = float(np.clip(0.5 + gain * done + rng.normal(0, 0.06), 0, 1))
        row |= {"distance": 1 + 3 * done + rng.normal(0, 0.2), "mu": 1 + 3 * done, "margin": done, "grad_norm": 2.0}
        row |= {"effective_batch_size": 8 - 3 * done * weighted, "clipped_share": 0.05 * done * weighted}
        row |= {"weight_q10": 0.6, "weight_q50": 1.0, "weight_q90": 1 + 2.0 * done} if weighted else {}
        log.append(row)
        if step % (steps // 2) == 0:
            log.append({"step": step, "eval_accuracy": 0.5 + 0.2 * done, "eval_loss": 0.6, "eval_accuracy_near": 0.55})
    state = {"global_step": steps, "log_history": [*log, {"step": steps, "train_runtime": 3.0, "train_loss": 0.5}]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def nasty_ids() -> Sequence[str]:
    return [row["id"] for row in NASTY]
