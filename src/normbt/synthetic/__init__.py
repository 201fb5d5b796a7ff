"""Built-in generated preferences whose true reward is known, in the four categories of RewardBench.

Every row comes from a :class:`~normbt.synthetic.tasks.Task`: a prompt that can be answered well or with named flaws.
The true reward of an answer is the sum of what its attributes are worth (:data:`ATTRIBUTE_REWARD`), so the label, the
margin and the best of N answers are exact. The text is a template's, not a person's: see ``docs/synthetic.md``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import TypedDict

from normbt.errors import ConfigError
from normbt.synthetic import chat, chat_hard, reasoning, safety
from normbt.synthetic.tasks import ATTRIBUTE_REWARD, Task, chance, pick_several, true_reward

__all__ = [
    "ATTRIBUTE_REWARD",
    "CATEGORIES",
    "SyntheticCandidate",
    "SyntheticPair",
    "generate_candidates",
    "generate_pairs",
]

_TASK_MAKERS: Mapping[str, Callable[[Random], Task]] = MappingProxyType(
    {
        "chat": chat.make_task,
        "chat_hard": chat_hard.make_task,
        "safety": safety.make_task,
        "reasoning": reasoning.make_task,
    }
)

#: The categories, in the order in which :func:`generate_pairs` takes turns.
CATEGORIES: tuple[str, ...] = tuple(_TASK_MAKERS)

#: How often a used prompt is drawn again before the category counts as exhausted.
_PROMPT_ATTEMPTS = 1000
#: How often a pair is worded again to let a fair coin, not the flaw, decide which answer is longer.
_LENGTH_ATTEMPTS = 16


class SyntheticPair(TypedDict):
    """One generated preference. Rewards and margin are in the units of :data:`ATTRIBUTE_REWARD`."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    category: str
    subset: str
    margin: float
    true_reward_chosen: float
    true_reward_rejected: float


class SyntheticCandidate(TypedDict):
    """One of several generated answers to the same prompt."""

    prompt_id: str
    prompt: str
    response: str
    category: str
    subset: str
    true_reward: float


def generate_pairs(count: int, *, seed: int, categories: Sequence[str] = CATEGORIES) -> list[SyntheticPair]:
    """Generate preference pairs; the categories take turns, and no prompt occurs twice.

    The same arguments give the same rows on every platform and Python version. The rows of a category depend on the
    seed and their position alone, so a shorter list is the beginning of a longer one, and slices of one list are
    disjoint splits with equal shares of each category.

    Args:
        count: number of pairs, at least 1.
        seed: start of the random numbers.
        categories: some of :data:`CATEGORIES`.

    Returns:
        ``count`` rows; ``margin`` is ``true_reward_chosen - true_reward_rejected``, always above 0.

    Raises:
        ConfigError: a count below 1, an unknown category, or more pairs than a category has prompts.

    Example:
        >>> pair = generate_pairs(1, seed=0, categories=["reasoning"])[0]
        >>> pair["true_reward_chosen"] > pair["true_reward_rejected"]
        True
    """
    tasks = _take_turns(count, seed, categories, purpose="pairs")
    return [_pair(number, category, task, random, seed) for number, category, task, random in tasks]


def generate_candidates(
    prompts: int, per_prompt: int, *, seed: int, categories: Sequence[str] = CATEGORIES
) -> list[SyntheticCandidate]:
    """Generate several answers to each prompt, good and flawed ones in random order, with their true rewards.

    Answers are drawn independently, so two answers to a prompt may be equal, as those of a language model may.

    Args:
        prompts: number of prompts, at least 1.
        per_prompt: number of answers to each prompt, at least 1.
        seed: start of the random numbers.
        categories: some of :data:`CATEGORIES`.

    Returns:
        ``prompts * per_prompt`` rows, the answers to a prompt next to each other.

    Raises:
        ConfigError: a number below 1, an unknown category, or more prompts than a category has.

    Example:
        >>> rows = generate_candidates(2, 8, seed=0)
        >>> len(rows), len({row["prompt_id"] for row in rows})
        (16, 2)
    """
    if per_prompt < 1:
        raise ConfigError(f"per_prompt must be at least 1, found {per_prompt}. Ask for at least one answer a prompt.")
    rows: list[SyntheticCandidate] = []
    for number, category, task, random in _take_turns(prompts, seed, categories, purpose="candidates"):
        for _ in range(per_prompt):
            flaws = pick_several(random, task.flaws, _draw_number_of_flaws(random, task))
            attributes = frozenset(flaws) | _draw_merits(random, task)
            rows.append(
                {
                    "prompt_id": f"synthetic-{seed}-{category}-prompt-{number}",
                    "prompt": task.prompt,
                    "response": task.write(attributes, _fork(random)),
                    "category": category,
                    "subset": task.subset,
                    "true_reward": true_reward(attributes),
                }
            )
    return rows


def _take_turns(
    count: int, seed: int, categories: Sequence[str], purpose: str
) -> Iterator[tuple[int, str, Task, Random]]:
    """Yield the number, category, task and generator of each row, the categories in turn."""
    if count < 1:
        raise ConfigError(f"The number of generated rows must be at least 1, found {count}.")
    unknown = [name for name in categories if name not in _TASK_MAKERS]
    if unknown or not categories or len(set(categories)) < len(categories):
        known = ", ".join(CATEGORIES)
        raise ConfigError(f"categories must be different names out of {known}; found {list(categories)}.")
    streams = {name: _distinct_tasks(name, Random(f"normbt {purpose} {name} {seed}")) for name in categories}
    for index in range(count):
        category = categories[index % len(categories)]
        task, random = next(streams[category])
        yield index // len(categories), category, task, random


def _distinct_tasks(category: str, random: Random) -> Iterator[tuple[Task, Random]]:
    seen: set[str] = set()
    while True:
        for _ in range(_PROMPT_ATTEMPTS):
            task = _TASK_MAKERS[category](random)
            if task.prompt not in seen:
                break
        else:
            raise ConfigError(
                f"Category {category} has no more distinct prompts after {len(seen)}. Ask for fewer rows."
            )
        seen.add(task.prompt)
        yield task, random


def _pair(number: int, category: str, task: Task, random: Random, seed: int) -> SyntheticPair:
    # The rejected answer has every flaw of the chosen one and at least one more; a merit never makes up for a flaw.
    flaws = pick_several(random, task.flaws, max(1, _draw_number_of_flaws(random, task)))
    shared = flaws[1:] if chance(random, 0.5) else []
    chosen_attributes = frozenset(shared) | _draw_merits(random, task)
    rejected_attributes = frozenset(flaws) | _draw_merits(random, task)
    chosen, rejected = _word_pair(task, chosen_attributes, rejected_attributes, random)
    chosen_reward, rejected_reward = true_reward(chosen_attributes), true_reward(rejected_attributes)
    return {
        "id": f"synthetic-{seed}-{category}-{number}",
        "prompt": task.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "category": category,
        "subset": task.subset,
        "margin": chosen_reward - rejected_reward,
        "true_reward_chosen": chosen_reward,
        "true_reward_rejected": rejected_reward,
    }


def _word_pair(task: Task, chosen: frozenset[str], rejected: frozenset[str], random: Random) -> tuple[str, str]:
    if task.same_wording:
        wording = _fork_seed(random)
        return task.write(chosen, Random(wording)), task.write(rejected, Random(wording))
    chosen_is_longer = chance(random, 0.5)
    texts = ("", "")
    for _ in range(_LENGTH_ATTEMPTS):
        texts = task.write(chosen, _fork(random)), task.write(rejected, _fork(random))
        if len(texts[0]) != len(texts[1]) and (len(texts[0]) > len(texts[1])) == chosen_is_longer:
            break
    return texts


def _draw_number_of_flaws(random: Random, task: Task) -> int:
    """Return 0 (three in ten), 1 (five in ten) or 2 (two in ten, where the task has two)."""
    draw = random.random()
    return 0 if draw < 0.3 else 1 if draw < 0.8 else min(2, len(task.flaws))


def _draw_merits(random: Random, task: Task) -> frozenset[str]:
    return frozenset(merit for merit in task.merits if chance(random, 0.5))


def _fork_seed(random: Random) -> int:
    return int(random.random() * 2**53)


def _fork(random: Random) -> Random:
    return Random(_fork_seed(random))
