"""The end of the job: mu, weights and statistics from the parts; records are read one by one, twice."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normbt.bias import summarise
from normbt.bias.shares import Floats
from normbt.diagnose.columns import Columns
from normbt.metrics import at_bound
from normbt.results import (
    PAIRS_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    DiagnosisSummary,
    GradientMethod,
    InferenceSettings,
    Parts,
    provenance,
    write_json,
    write_jsonl,
)
from normbt.weights import pair_weights


def finish(
    folder: Path,
    parts: Parts,
    count: int,
    *,
    model: str,
    total_pairs: int,
    seed: int | None,
    settings: Mapping[str, Any],
    inference: InferenceSettings,
    run: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
) -> DiagnosisSummary:
    """Write ``pairs.jsonl`` and ``summary.json`` from the parts, and remove these.

    Memory: the numbers of all pairs, not their texts.

    Args:
        folder: of the result files.
        parts: the records, without weights.
        count: number of parts.
        model: the model as named by the user.
        total_pairs: pairs the data held.
        seed: of the sample; None where all pairs were taken.
        settings: of the job.
        inference: what decides the exact value of a reward.
        run: everything that decides the numbers; becomes ``provenance.config``.
        data: reports of the data.

    Returns:
        The summary, as written.
    """
    columns = Columns.of(_records(parts, count))
    finite = columns.finite
    mu = float(columns.distance[finite].mean()) if finite.any() else None
    weight = _weights(columns.distance, mu, settings)
    written = write_jsonl(folder / PAIRS_FILE, _weighted(_records(parts, count), weight))
    headers = list(parts.headers(count))
    batchings = sorted({header["batching"] for header in headers})
    statistics = summarise(
        columns.pair_numbers(weight),
        resamples=settings["resamples"],
        confidence=settings["confidence"],
        seed=settings["seed"],
    )
    bound = settings["max_weight"]
    summary = DiagnosisSummary(
        schema_version=SCHEMA_VERSION,
        kind="diagnosis",
        model=model,
        total_pairs=total_pairs,
        sampled_pairs=written.rows,
        seed=seed,
        mu=mu,
        eps=settings["eps"],
        max_weight=bound,
        clipped=0 if bound is None else int(at_bound(torch.from_numpy(weight), bound).sum()),
        misranked=columns.counts["misranked"],
        ties=columns.counts["ties"],
        non_finite=int((~finite).sum()),
        truncated=columns.counts["truncated"],
        method=_method(headers, asked=settings["method"]),
        self_check=headers[0]["self_check"],
        without_category=columns.counts["without_category"],
        confidence=settings["confidence"],
        resamples=settings["resamples"],
        peak_memory_bytes=_peak_memory(),
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if inference["device"].startswith("cuda") else None,
        inference={**inference, "batching": " and ".join(batchings)},
        pairs_sha256=written.sha256,
        provenance=provenance(config=run, seed=settings["seed"], data=data),
        **statistics,
    )
    write_json(folder / SUMMARY_FILE, summary)
    parts.remove()
    return summary


def _records(parts: Parts, count: int) -> Iterator[dict[str, Any]]:
    return map(json.loads, parts.lines(count))


def _weights(distance: Floats, mu: float | None, settings: Mapping[str, Any]) -> Floats:
    """NormBT's weight of every pair, NaN where there is none."""
    if mu is None:
        return np.full_like(distance, np.nan)
    weights = pair_weights(torch.from_numpy(distance), mu, eps=settings["eps"], max_weight=settings["max_weight"])
    return weights.double().numpy()


def _weighted(records: Iterator[dict[str, Any]], weight: Floats) -> Iterator[dict[str, Any]]:
    for record, value in zip(records, weight.tolist(), strict=True):
        finite = bool(np.isfinite(value))
        record["weight"] = value if finite else None
        record["update_normbt"] = value * record["update_bt"] if finite and record["update_bt"] is not None else None
        yield record


def _method(headers: Sequence[Mapping[str, Any]], *, asked: str) -> GradientMethod:
    pairs = {"ghost": 0, "exact": 0}
    reasons: dict[str, str] = {}  # the first one of each method: a resumed run checks again, and says so again
    for header in headers:
        pairs[header["method"]] += header["pairs"]
        reasons.setdefault(header["method"], header["reason"])
    used = [name for name, number in pairs.items() if number]
    return GradientMethod(
        asked=asked,
        used=used[0] if len(used) == 1 else "mixed",
        reason="; ".join(reasons.values()),
        pairs_ghost=pairs["ghost"],
        pairs_exact=pairs["exact"],
        batch_tokens=headers[0]["gradient_tokens"],
        parameters=headers[0]["parameters"],
    )


def _peak_memory() -> int | None:
    """Largest resident memory of this process in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
