"""What a suite is: a format that is read, a rule that decides, and a rule that scores.

A suite turns rows into *items* (a prompt with its answers), and the rewards of the answers into *decisions*: rows of
credit, each in a group. Every score is a function of the sum and the count of each group, linear in the sums, so that
one bootstrap serves all scores and two models can be compared score by score.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normbt.pairs import DataReport
from normbt.results import Coverage, EvaluationPair, EvaluationPrompt
from normbt.stats import TIE_POLICY, PairOutcomes, pair_outcomes

Numbers = NDArray[np.float64]
Text = str | list[dict[str, Any]]
Record = EvaluationPair | EvaluationPrompt
"""A line of an evaluation's file of decisions."""


@dataclass(frozen=True)
class Item:
    """A prompt with answers to tell apart.

    Attributes:
        id: unique in the data.
        prompt: text or messages; None where prompt and answer are one text.
        chosen: the right answers.
        rejected: the wrong ones.
        cluster_id: items of one cluster are right and wrong together.
        source: where the row came from, if it says so.
        category: as the data name it, or the suite.
        subset: as the data name it.
        chosen_first: whether the first of the two answers is the right one, for suites where a tie goes to a place.
    """

    id: str
    prompt: Text | None
    chosen: tuple[Text, ...]
    rejected: tuple[Text, ...]
    cluster_id: str
    source: str | None = None
    category: str | None = None
    subset: str | None = None
    chosen_first: bool = True


class Decisions(NamedTuple):
    """What a score counts; every field has one entry for each decision.

    Attributes:
        record: position of the record that the decision is about; a record may have several.
        group: what the rule of the suite tells apart, such as the subset.
        credit: what the decision earns: 1 if right, 0 if wrong, a share for some ties.
        counted: it is a decision of the model and part of the plain accuracy; False for what is derived from several.
        tie: it hung on two equal rewards.
        finite: it hung on finite rewards only.
        truncated: one of its sequences was cut.
    """

    record: NDArray[np.int64]
    group: list[str]
    credit: Numbers
    counted: NDArray[np.bool_]
    tie: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


class Groups(NamedTuple):
    """Sum of the credit and number of decisions of each group, numbers or arrays of one shape (one per resample)."""

    sums: Mapping[str, Numbers]
    counts: Mapping[str, Numbers]

    def means(self) -> dict[str, Numbers]:
        """Mean of each group; NaN where a resample drew none of it."""
        with np.errstate(invalid="ignore"):
            return {name: self.sums[name] / self.counts[name] for name in self.sums}

    def overall(self) -> Numbers:
        """Mean over all decisions whatever their group."""
        return np.asarray(sum(self.sums.values()) / sum(self.counts.values()))


class SuiteScores(NamedTuple):
    """The scores of a suite, each of the shape of the groups it was made from.

    Attributes:
        headline: the number to quote.
        sections: what the headline is the mean of; empty where it is an accuracy.
        details: further scores that the suite defines.
    """

    headline: Numbers
    sections: dict[str, Numbers]
    details: dict[str, Numbers]


class Suite(ABC):
    """One benchmark.

    Attributes:
        name: as it is given to ``--suite``.
        hub_id: the official data on the Hub; None where there are none.
        hub_split: their split.
        files: beginnings of the names under which ``--all`` looks for the data in a folder.
        tie_policy: what equal rewards earn: ``wrong`` nothing, ``fractional`` a share, ``second`` as if the second
            answer had won. Rewards that are not numbers earn nothing under any policy.
        chat: its plain text is a conversation, to be rendered by the tokenizer's chat template if it has one.
        primary: names of the outcomes that a comparison is about unless told otherwise, beside the headline.
    """

    name: ClassVar[str]
    hub_id: ClassVar[str | None] = None
    hub_split: ClassVar[str | None] = None
    files: ClassVar[tuple[str, ...]] = ()
    tie_policy: ClassVar[str] = TIE_POLICY
    chat: ClassVar[bool] = True
    primary: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, source: str | Path, split: str | None) -> tuple[list[Item], DataReport]:
        """Items of a file, a folder or a Hub data set, and the report of what became of every row.

        Raises:
            DataError: the data cannot be read, hold no item, or are not this suite's.
        """

    @abstractmethod
    def decisions(self, records: Sequence[Record], *, by_length: bool = False) -> Decisions:
        """Decisions of an evaluation from its records.

        Args:
            records: lines of the evaluation's file.
            by_length: decide by the number of characters instead of the rewards; a coin decides equal lengths.
        """

    @abstractmethod
    def scores(self, groups: Groups) -> SuiteScores:
        """The suite's scores; linear in the sums, for given counts."""

    def headline(self, sections: int) -> str:
        """What the headline is, in words, for a number of sections."""
        return f"mean of {sections} sections" if sections else "accuracy"

    def unit(self, item: Item) -> str:
        """Name of what a random sample draws as a whole: the item, unless its score needs another one."""
        return item.id

    def coverage(self, items: Sequence[Record]) -> Coverage | None:
        """How far the records are the official benchmark; None where there is none."""
        return None

    def leaderboard(
        self, scores: Mapping[str, Mapping[str, float]], *, headline: float, model: str, template: str
    ) -> dict[str, float | str] | None:
        """The flat record that the benchmark's own tools write; None where there is none.

        Args:
            scores: values of the ``sections``, ``details`` and ``subsets`` by name.
            headline: value of the headline.
            model: name of the model.
            template: whose chat template was used.
        """
        return None


class PairSuite(Suite):
    """A suite whose items are pairs: one right answer, one wrong."""

    def outcomes(self, items: Sequence[Item], chosen: Numbers, rejected: Numbers) -> PairOutcomes:
        """Which pairs count as right, by the suite's rule for ties.

        Args:
            items: the pairs.
            chosen: rewards of the right answers, shape ``(pairs,)``.
            rejected: rewards of the wrong answers.
        """
        return pair_outcomes(chosen, rejected)

    def group(self, record: EvaluationPair) -> str:
        """The group of a pair."""
        return "all"

    def decisions(self, records: Sequence[Record], *, by_length: bool = False) -> Decisions:
        """One decision for each pair, as it was recorded."""
        pairs: Sequence[EvaluationPair] = records  # type: ignore[assignment] - a pair suite writes pairs
        lead = np.array([pair["n_characters_chosen"] - pair["n_characters_rejected"] for pair in pairs])
        tie = lead == 0 if by_length else np.array([pair["tie"] for pair in pairs])
        right = (
            np.where(tie, 0.5, lead > 0) if by_length else np.array([pair["correct"] for pair in pairs], dtype=float)
        )
        lost = [pair["score_chosen"] is None or pair["score_rejected"] is None for pair in pairs]
        return Decisions(
            record=np.arange(len(pairs)),
            group=[self.group(pair) for pair in pairs],
            credit=right,
            counted=np.ones(len(pairs), dtype=np.bool_),
            tie=tie,
            finite=~np.array(lost),
            truncated=np.array([pair["truncated"] for pair in pairs]),
        )

    def scores(self, groups: Groups) -> SuiteScores:
        """The accuracy over all pairs."""
        return SuiteScores(groups.overall(), {}, {})


class PromptSuite(Suite):
    """A suite whose items are prompts with several answers; it decides again from the recorded rewards."""

    @abstractmethod
    def decide(self, prompt: EvaluationPrompt, chosen: Numbers, rejected: Numbers) -> "list[Verdict]":
        """Decisions about one prompt.

        Args:
            prompt: the record; its rewards are not looked at.
            chosen: what the right answers are ranked by, NaN where it is not a number.
            rejected: what the wrong answers are ranked by.
        """

    def verdicts(self, prompt: EvaluationPrompt, *, by_length: bool = False) -> "list[Verdict]":
        """Decisions about one prompt from what is recorded of it."""
        return self.decide(prompt, *ranked_by(prompt, by_length=by_length))

    def decisions(self, records: Sequence[Record], *, by_length: bool = False) -> Decisions:
        """The decisions about each prompt, in order."""
        prompts: Sequence[EvaluationPrompt] = records  # type: ignore[assignment] - a prompt suite writes prompts
        rows: list[tuple[int, Verdict]] = []
        for position, prompt in enumerate(prompts):
            rows += [(position, verdict) for verdict in self.verdicts(prompt, by_length=by_length)]
        verdicts = [verdict for _, verdict in rows]
        credit = np.array([verdict.credit for verdict in verdicts])
        tie = np.array([verdict.tie for verdict in verdicts])
        return Decisions(
            record=np.array([position for position, _ in rows], dtype=np.int64),
            group=[verdict.group for verdict in verdicts],
            # A rule that gives ties nothing would make "the longer answer" look worse than it is.
            credit=np.where(tie, 0.5, credit) if by_length and self.tie_policy == TIE_POLICY else credit,
            counted=np.array([verdict.counted for verdict in verdicts]),
            tie=tie,
            finite=np.array([verdict.finite for verdict in verdicts]),
            truncated=np.array([_is_cut(prompts[position], verdict) for position, verdict in rows]),
        )


class Verdict(NamedTuple):
    """One decision about a prompt.

    Attributes:
        group: what the rule of the suite tells apart.
        credit: what it earns.
        tie: it hung on equal rewards.
        finite: all rewards it hung on are finite.
        counted: it is part of the plain accuracy.
        answers: positions of the right and of the wrong answer it compares; None for all.
    """

    group: str
    credit: float
    tie: bool = False
    finite: bool = True
    counted: bool = True
    answers: tuple[int, int] | None = None


def ranked_by(prompt: EvaluationPrompt, *, by_length: bool) -> tuple[Numbers, Numbers]:
    """What the right and the wrong answers of a prompt are ranked by: their rewards, or their lengths in characters."""
    if by_length:
        chosen, rejected = prompt["n_characters_chosen"], prompt["n_characters_rejected"]
    else:
        chosen, rejected = prompt["scores_chosen"], prompt["scores_rejected"]
    return np.array(chosen, dtype=np.float64), np.array(rejected, dtype=np.float64)  # null becomes NaN


def coverage(found: Mapping[str, int], official: Mapping[str, int]) -> Coverage:
    """How far the data at hand are the official benchmark.

    Args:
        found: number of records of each subset.
        official: the number the official data hold.

    Returns:
        Names of the official subsets without any record, and ``[found, official]`` of those with another count.

    Example:
        >>> coverage({"a": 3}, {"a": 4, "b": 1})
        {'missing_subsets': ['b'], 'incomplete_subsets': {'a': [3, 4]}}
    """
    return Coverage(
        missing_subsets=[subset for subset in official if not found.get(subset)],
        incomplete_subsets={
            subset: [found[subset], wanted]
            for subset, wanted in official.items()
            if found.get(subset, 0) not in (0, wanted)
        },
    )


def _is_cut(prompt: EvaluationPrompt, verdict: Verdict) -> bool:
    if verdict.answers is None:
        return any(prompt["truncated_chosen"]) or any(prompt["truncated_rejected"])
    chosen, rejected = verdict.answers
    return prompt["truncated_chosen"][chosen] or prompt["truncated_rejected"][rejected]
