r"""RM-Bench: three right and three wrong answers in three styles, each right one against each wrong one.

Reproduces ``compute_accuracy`` of ``scripts/utils.py`` (THU-KEG/RM-Bench, commit 73c52d7).

References:
    Liu et al., "RM-Bench: Benchmarking reward models of language models with subtlety and style", arXiv 2410.16184.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normbt.pairs import DataReport
from normbt.results import Coverage, EvaluationPrompt
from normbt.suites.base import Groups, Item, Numbers, PromptSuite, Record, SuiteScores, Verdict, coverage
from normbt.suites.clusters import prompt_cluster
from normbt.suites.rows import NotAnItem, read_rows, text, texts

STYLES = ("concise", "detailed, plain", "detailed, Markdown")
"""Of the answers, in their order: from plain to fancy."""

DOMAINS = ("chat", "math", "code", "safety")
OFFICIAL_COUNTS = {"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157}

DIFFICULTIES = ("Hard", "Normal", "Easy")


def difficulty(chosen_style: int, rejected_style: int) -> str:
    """How hard a comparison is: the right answer is plainer than the wrong one, as fancy, or fancier.

    Args:
        chosen_style: position of the right answer's style in :data:`STYLES`.
        rejected_style: position of the wrong answer's style.

    Example:
        >>> difficulty(0, 2), difficulty(1, 1), difficulty(2, 0)
        ('Hard', 'Normal', 'Easy')
    """
    return DIFFICULTIES[1 + int(np.sign(chosen_style - rejected_style))]


class RMBench(PromptSuite):
    """RM-Bench."""

    name = "rm-bench"
    hub_id = "THU-KEG/RM-Bench"
    hub_split = "train"
    files = ("rm-bench", "rm_bench", "rmbench", "total_dataset")

    def read(self, source: str | Path, split: str | None) -> tuple[list[Item], DataReport]:
        """Rows of the official files: ``id, prompt, chosen, rejected``, and ``domain`` or a file named after one."""
        columns = ("id", "prompt", "chosen", "rejected")
        form = f"prompts with {len(STYLES)} right and {len(STYLES)} wrong answers"
        return read_rows(source, split, form=form, columns=columns, parse=self._item)

    def _item(self, row: Mapping[str, Any], file: str) -> Item:
        # The official files of one domain do not repeat it in their rows: "chat_filtered.json".
        named = row.get("domain") or next((name for name in OFFICIAL_COUNTS if file.startswith(name)), None)
        domain = next((name for name in DOMAINS if str(named).startswith(name)), None)
        if domain is None:
            raise NotAnItem(f"domain {named!r} is none of {', '.join(DOMAINS)} (and the file is not named after one)")
        chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
        if not len(chosen) == len(rejected) == len(STYLES):
            raise NotAnItem(f"wanted {len(STYLES)} right and wrong answers, found {len(chosen)} and {len(rejected)}")
        prompt = text(row, "prompt")
        item_id = f"{named}/{row['id']}"  # each domain counts its rows anew
        return Item(item_id, prompt, chosen, rejected, prompt_cluster(prompt), category=domain, subset=str(named))

    def decide(self, prompt: EvaluationPrompt, chosen: Numbers, rejected: Numbers) -> list[Verdict]:
        """Nine comparisons; the right answer's reward must be strictly higher."""
        verdicts = []
        for i, right in enumerate(chosen):
            for j, wrong in enumerate(rejected):
                group = f"{prompt['category']}: {difficulty(i, j)}"
                finite = bool(np.isfinite(right) and np.isfinite(wrong))
                credit = float(finite and right > wrong)
                verdicts.append(Verdict(group, credit, tie=bool(right == wrong), finite=finite, answers=(i, j)))
        return verdicts

    def scores(self, groups: Groups) -> SuiteScores:
        """The mean of Hard, Normal and Easy in each domain, the mean of the domains, and each difficulty over them."""
        means = groups.means()
        by_domain = {
            domain: [means[f"{domain}: {level}"] for level in DIFFICULTIES]
            for domain in DOMAINS
            if f"{domain}: {DIFFICULTIES[0]}" in means
        }
        table = np.stack([np.stack(levels) for levels in by_domain.values()])  # domains, difficulties, ...
        sections = dict(zip(by_domain, table.mean(axis=1), strict=True))
        details: dict[str, Numbers] = dict(zip(DIFFICULTIES, table.mean(axis=0), strict=True))
        return SuiteScores(table.mean(axis=(0, 1)), sections, details)

    def headline(self, sections: int) -> str:
        """The mean of the domains."""
        return f"mean of {sections} domains"

    def coverage(self, items: Sequence[Record]) -> Coverage | None:
        """Against the official counts."""
        return coverage(Counter(str(record["subset"]) for record in items), OFFICIAL_COUNTS)

    def leaderboard(
        self, scores: Mapping[str, Mapping[str, float]], *, headline: float, model: str, template: str
    ) -> dict[str, float | str] | None:
        """The dictionary that ``compute_accuracy`` returns."""
        levels = {f"{level.lower()}_acc": scores["details"][level] for level in DIFFICULTIES}
        return {**scores["sections"], **levels, "total_avg_acc": headline}
