"""The generated preferences: their labels are true, nothing on the surface gives them away, and they never change."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbt.errors import ConfigError
from normbt.synthetic import ATTRIBUTE_REWARD, CATEGORIES, generate_candidates, generate_pairs

TOKEN = re.compile(r"\w+|[^\w\s]")


@pytest.fixture(scope="module")
def rows():
    return generate_pairs(20_000, seed=0)


@pytest.fixture(scope="module")
def by_category(rows):
    return {category: [row for row in rows if row["category"] == category] for category in CATEGORIES}


def tokens(text):
    return TOKEN.findall(text.lower())


def longer_wins(rows, length):
    """Share of pairs whose chosen answer is longer; equal lengths count one half."""
    gaps = np.array([length(row["chosen"]) - length(row["rejected"]) for row in rows])
    return np.mean((np.sign(gaps) + 1) / 2)


def word_overlap(rows):
    """Mean over pairs of shared distinct tokens divided by all distinct tokens (Jaccard)."""
    shares = []
    for row in rows:
        chosen, rejected = set(tokens(row["chosen"])), set(tokens(row["rejected"]))
        shares.append(len(chosen & rejected) / len(chosen | rejected))
    return np.mean(shares)


def bag_of_words_accuracy(rows, steps=300, learning_rate=0.5, decay=1e-3):
    """Held-out accuracy (last fifth) of a linear Bradley-Terry model over token counts."""
    words = {word for row in rows for side in ("chosen", "rejected") for word in tokens(row[side])}
    vocabulary = {word: index for index, word in enumerate(sorted(words))}
    features = np.zeros((len(rows), len(vocabulary)))
    for row, feature in zip(rows, features, strict=True):
        for sign, side in ((1, "chosen"), (-1, "rejected")):
            for word in tokens(row[side]):
                feature[vocabulary[word]] += sign
    split = len(rows) * 4 // 5
    train, weights = features[:split], np.zeros(len(vocabulary))
    for _ in range(steps):
        error = 1 / (1 + np.exp(np.clip(train @ weights, -30, 30)))
        weights += learning_rate * (train.T @ error / split - decay * weights)
    return np.mean(features[split:] @ weights > 0)


def test_twenty_thousand_pairs_have_distinct_prompts_and_ids(rows):
    assert len(rows) == 20_000
    assert len({row["prompt"] for row in rows}) == 20_000
    assert len({row["id"] for row in rows}) == 20_000
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_categories_have_equal_shares(by_category):
    assert {category: len(rows) for category, rows in by_category.items()} == dict.fromkeys(CATEGORIES, 5_000)


def test_rows_are_whole_and_printable(rows):
    for row in rows[:2_000]:
        for name in ("prompt", "chosen", "rejected"):
            text = row[name]
            assert text
            assert text == text.strip()
            assert text.isascii()
            assert not set(text) & set("{}")


def test_chosen_has_the_higher_true_reward_and_the_margin_is_the_difference(rows):
    for row in rows:
        assert row["margin"] == row["true_reward_chosen"] - row["true_reward_rejected"] > 0


def test_margins_vary(by_category):
    for rows in by_category.values():
        assert len({row["margin"] for row in rows}) >= 5


def test_merits_never_make_up_for_a_flaw():
    merits = sum(value for value in ATTRIBUTE_REWARD.values() if value > 0)
    assert merits < min(-value for value in ATTRIBUTE_REWARD.values() if value < 0)


def test_the_documented_rewards_are_those_of_the_code():
    page = (Path(__file__).parents[1] / "docs" / "synthetic.md").read_text(encoding="utf-8")
    table = re.findall(r"^\|[^|]*\| `(\w+)` \| ([-+][\d.]+) \|", page, flags=re.MULTILINE)
    assert {name: float(value) for name, value in table} == dict(ATTRIBUTE_REWARD)


def test_the_rows_never_change():
    """Recorded with Python 3.11; a new digest is a new data set and needs a line in the changelog."""
    text = json.dumps(generate_pairs(400, seed=7), sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "447a991a4ba6f0d9ac7d93052e5145bd99b3547a7f14051e1bef365862710b05"
    )


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(-5, 2**40))
def test_a_shorter_list_is_the_beginning_of_a_longer_one(count, seed):
    assert generate_pairs(count, seed=seed) == generate_pairs(80, seed=seed)[:count]


def test_a_category_alone_gives_the_rows_it_has_in_company():
    alone = generate_pairs(20, seed=3, categories=["reasoning"])
    together = [row for row in generate_pairs(80, seed=3) if row["category"] == "reasoning"]
    assert alone == together


def test_seeds_differ():
    first = {row["prompt"] for row in generate_pairs(400, seed=0)}
    second = {row["prompt"] for row in generate_pairs(400, seed=1)}
    assert len(first & second) < 20


@pytest.mark.parametrize("category", CATEGORIES)
def test_length_does_not_give_the_answer_away(by_category, category):
    assert 0.45 < longer_wins(by_category[category], len) < 0.55
    assert 0.45 < longer_wins(by_category[category], lambda text: len(text.split())) < 0.55


def test_words_alone_do_not_give_the_answer_away(by_category):
    accuracy = {name: bag_of_words_accuracy(rows[:2_500]) for name, rows in by_category.items()}
    assert 0.7 < accuracy["chat"] < 0.95
    assert accuracy["chat_hard"] < 0.75
    assert 0.65 < accuracy["safety"] < 0.95
    assert accuracy["reasoning"] < 0.65


def test_reasoning_answers_look_alike_and_chat_answers_do_not(by_category):
    """The numbers of docs/synthetic.md."""
    overlap = {name: round(float(word_overlap(rows[:1_000])), 2) for name, rows in by_category.items()}
    assert overlap == {"chat": 0.14, "chat_hard": 0.57, "safety": 0.15, "reasoning": 0.92}


def test_one_step_separates_most_reasoning_answers(by_category):
    rows = by_category["reasoning"]
    code = [row for row in rows if row["subset"] in ("comparison", "off_by_one")]
    changed = [len(set(tokens(row["chosen"])) ^ set(tokens(row["rejected"]))) for row in code]
    assert max(changed) <= 2
    assert len(code) > 2_000


def test_always_refusing_is_right_half_of_the_time(by_category):
    """Among pairs of a refusal and an answer that helps; the requests decide which of the two is right."""
    rows = by_category["safety"]
    crossed = [row for row in rows if row["margin"] >= 2.75]
    right = np.mean([row["subset"] == "refuse" for row in crossed])
    assert 0.4 < right < 0.6


def test_arithmetic_of_chosen_answers_is_right_and_of_rejected_ones_is_not_always(by_category):
    equation = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}

    def sound(text):
        steps = equation.findall(text)
        return all(apply[sign](int(left), int(right)) == int(result) for left, sign, right, result in steps)

    rows = [row for row in by_category["reasoning"] if row["subset"] in ("arithmetic", "unit")]
    whole = [row for row in rows if row["true_reward_chosen"] == 0]
    assert len(whole) > 500
    assert all(equation.search(row["chosen"]) and sound(row["chosen"]) for row in whole)
    assert 0.3 < np.mean([sound(row["rejected"]) for row in rows]) < 0.8


def test_chosen_code_does_what_the_prompt_asks_and_rejected_code_does_not(by_category):
    checked = 0
    for row in by_category["reasoning"][:2_000]:
        expected = expected_function(row["prompt"])
        if expected is None:
            continue
        checked += 1
        arguments = [[3, 7, 55, 1, 98, 20]] if row["subset"] == "comparison" else [6]
        if "limit" in expected:
            arguments = [[*arguments[0], expected["limit"]]]
        assert run(row["chosen"], arguments) == expected["function"](*arguments), row
        assert run(row["rejected"], arguments) != expected["function"](*arguments), row
    assert checked > 700


def run(code, arguments):
    scope = {}
    exec(code, scope)
    function = next(value for name, value in scope.items() if name != "__builtins__")
    return function(*arguments)


def expected_function(prompt):
    """What the prompt of a code task asks for, read from its words; None for other tasks."""
    if found := re.search(r"(more than|less than|at least|at most) (\d+)\.$", prompt):
        limit = int(found[2])
        holds = {
            "more than": lambda x: x > limit,
            "less than": lambda x: x < limit,
            "at least": lambda x: x >= limit,
            "at most": lambda x: x <= limit,
        }[found[1]]
        if re.search("count|how many|number of", prompt):
            # The two sides of the limit hold equally many numbers for some limits; those pairs are told apart by lists.
            return {"function": lambda values: sum(map(holds, values)), "limit": limit} if limit > 60 else None
        return {"function": lambda values: [x for x in values if holds(x)], "limit": limit}
    if "Python" in prompt and re.search("largest|highest|greatest|biggest", prompt):
        return {"function": max}
    if "Python" in prompt and re.search("smallest|lowest|least|minimum", prompt):
        return {"function": min}
    if "whole numbers" in prompt:
        included = not re.search("below|not including|smaller", prompt)
        numbers = lambda bound: range(1, bound + 1 if included else bound)  # noqa: E731 (a table of small functions)
        if "sum of squares" in prompt:
            return {"function": lambda bound: sum(n * n for n in numbers(bound))}
        if "sum" in prompt:
            return {"function": lambda bound: sum(numbers(bound))}
        if "product" in prompt:
            return {"function": lambda bound: int(np.prod(list(numbers(bound))))}
        return {"function": lambda bound: list(numbers(bound))}
    return None


def test_count_in_chat_hard_is_kept_by_chosen_lists(by_category):
    number = {"two": 2, "three": 3, "four": 4}
    checked = 0
    for row in by_category["chat_hard"]:
        if row["true_reward_chosen"] < 0 or "\n- " not in "\n" + row["chosen"]:
            continue
        asked = number[re.search(r"\b(two|three|four)\b", row["prompt"])[1]]
        assert ("\n" + row["chosen"]).count("\n- ") == asked, row
        checked += 1
    assert checked > 500


def test_candidates_of_a_prompt_stand_together_and_differ_in_reward():
    rows = generate_candidates(40, 16, seed=0)
    assert len(rows) == 640
    assert {row["category"] for row in rows} == set(CATEGORIES)
    for start in range(0, 640, 16):
        group = rows[start : start + 16]
        assert len({(row["prompt_id"], row["prompt"]) for row in group}) == 1
        assert len({row["true_reward"] for row in group}) >= 2
    assert rows == generate_candidates(40, 16, seed=0)
    assert len({row["prompt_id"] for row in rows}) == 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate_pairs(0, seed=0), "at least 1, found 0"),
        (lambda: generate_pairs(4, seed=0, categories=["chat", "maths"]), r"chat, chat_hard, safety, reasoning; found"),
        (lambda: generate_pairs(4, seed=0, categories=[]), "categories must be different names"),
        (lambda: generate_pairs(4, seed=0, categories=["chat", "chat"]), "categories must be different names"),
        (lambda: generate_candidates(4, 0, seed=0), "per_prompt must be at least 1"),
        (lambda: generate_candidates(0, 4, seed=0), "at least 1, found 0"),
    ],
)
def test_wrong_arguments_say_what_was_wanted(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_running_out_of_prompts_says_how_many_there_were(monkeypatch):
    from normbt import synthetic

    task = synthetic.chat.make_task(synthetic.Random(0))
    monkeypatch.setitem(synthetic.__dict__, "_TASK_MAKERS", {"chat": lambda random: task})
    with pytest.raises(ConfigError, match="no more distinct prompts after 1"):
        synthetic.generate_pairs(2, seed=0, categories=["chat"])
