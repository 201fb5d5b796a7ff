"""`normbt best-of-n`: pools, curves with exact answers, candidates from models and servers, files."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations

import numpy as np
import pytest

from normbt import cli
from normbt.best_of_n import Curves, Sampling, best_of_n, read_pool
from normbt.best_of_n.candidates import Answer, Prompt, read_prompts, sample_candidates
from normbt.best_of_n.server import ServerSampler
from normbt.errors import ConfigError, DataError, StateError
from normbt.report import plot_best_of_n
from normbt.results import BEST_OF_N_FILE, CURVES_FILE, read_best_of_n, read_jsonl
from normbt.synthetic import generate_candidates


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pool_rows(prompts=6, candidates=6, seed=0, ties=1):
    """Candidates of several prompts, interleaved; scores rounded so that there are ties."""
    generator = np.random.default_rng(seed)
    rows = [
        {
            "prompt_id": prompt,
            "text": "x" * int(generator.integers(1, 9)),
            "proxy": round(generator.normal(), ties),
            "other": round(generator.normal(), ties),
            "gold": generator.normal() + prompt,
        }
        for prompt in range(prompts)
        for _ in range(candidates)
    ]
    return [rows[place] for place in generator.permutation(len(rows))]


def brute_force(rows, scores, values, n):
    """Mean over prompts, over all subsets, over the tied best of a subset."""
    means = []
    for prompt in {row["prompt_id"] for row in rows}:
        own = [row for row in rows if row["prompt_id"] == prompt]
        picks = []
        for subset in combinations(own, n):
            best = max(scores(row) for row in subset)
            picks.append(np.mean([values(row) for row in subset if scores(row) == best]))
        means.append(np.mean(picks))
    return np.mean(means)


# Pools and curves


def test_every_curve_is_the_mean_over_all_subsets_of_every_prompt(tmp_path):
    rows = pool_rows()
    pool = read_pool(write_rows(tmp_path / "c.jsonl", rows), proxies=["proxy", "other"], gold="gold")
    points = {(point["rule"], point["n"]): point for point in Curves(pool, [1, 2, 4], resamples=50).points()}
    columns = {"gold": lambda row: row["gold"], "characters": lambda row: len(row["text"])}
    rules = {
        "proxy": lambda row: row["proxy"],
        "other": lambda row: row["other"],
        "oracle": columns["gold"],
        "longest": columns["characters"],
    }
    for rule, scores in rules.items():
        for n in (1, 2, 4):
            for name, values in {**columns, "score": scores}.items():
                wanted = brute_force(rows, scores, values, n)
                assert points[rule, n][name]["value"] == pytest.approx(wanted, abs=1e-12)
            assert points[rule, n]["regret"]["value"] == pytest.approx(
                points["oracle", n]["gold"]["value"] - points[rule, n]["gold"]["value"], abs=1e-12
            )
    mean = np.mean([row["gold"] for row in rows])
    assert points["random", 1]["gold"]["value"] == pytest.approx(mean)
    gain = (points["proxy", 4]["gold"]["value"] - mean) / (points["oracle", 4]["gold"]["value"] - mean)
    assert points["proxy", 4]["gain"]["value"] == pytest.approx(gain)
    assert points["proxy", 4]["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    assert len(points) == 13


def test_right_or_wrong_gold_gives_pass_at_n(tmp_path):
    rows = [{"prompt_id": "a", "passed": index < 3} for index in range(10)]
    pool = read_pool(write_rows(tmp_path / "c.jsonl", rows), proxies=[], gold="passed")
    points = {
        point["n"]: point for point in Curves(pool, [1, 2, 5], resamples=10).points() if point["rule"] == "oracle"
    }
    for n in (1, 2, 5):
        assert points[n]["gold"]["value"] == pytest.approx(1 - math.comb(7, n) / math.comb(10, n), abs=1e-12)
    assert pool.characters is None


def test_differences_are_paired_by_prompt(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for prompt in range(40):
        level = 10 * generator.normal()  # what prompts differ by is ten times what rules differ by
        for _ in range(8):
            gold = level + generator.normal()
            rows.append({"prompt_id": prompt, "good": gold, "bad": generator.normal(), "gold": gold})
    pool = read_pool(write_rows(tmp_path / "c.jsonl", rows), proxies=["good", "bad"], gold="gold")
    curves = Curves(pool, [4], resamples=2000)
    (difference,) = curves.differences()
    good, bad = (point["gold"] for point in curves.points() if point["rule"] in ("good", "bad"))
    assert difference["gold"]["value"] == pytest.approx(good["value"] - bad["value"])
    assert difference["gold"]["low"] > 0  # shown, although the two intervals overlap
    assert good["low"] < bad["high"]
    assert difference["first_better"] == 1
    # The standard error over prompts, by the formula.
    per_prompt = (
        curves.per_prompt[:, curves.columns["gold", "good", 4]] - curves.per_prompt[:, curves.columns["gold", "bad", 4]]
    )
    error = per_prompt.std(ddof=1) / math.sqrt(40)
    assert (difference["gold"]["high"] - difference["gold"]["low"]) / 3.92 == pytest.approx(error, rel=0.1)
    assert curves.agreement()["good"]["value"] == 1


def test_prompts_with_few_candidates_are_left_out_and_counted(tmp_path):
    rows = [
        {"prompt_id": prompt, "proxy": index, "gold": index}
        for prompt, count in (("a", 16), ("b", 16), ("c", 7), ("d", 3))
        for index in range(count)
    ]
    pool = read_pool(write_rows(tmp_path / "c.jsonl", rows), proxies=["proxy"], gold="gold")
    curves = Curves(pool, resamples=10)
    assert curves.sizes == [1, 2, 4]  # half of the median prompt's 11.5
    counts = curves.counts()
    assert (counts["prompts"], counts["prompts_used"], counts["prompts_with_few"]) == (4, 3, 1)
    assert (counts["prompts_near_n"], counts["fewest"], counts["most"]) == (1, 7, 16)
    with pytest.raises(ConfigError, match=r"No prompt has the 17 candidates .* the most is 16"):
        Curves(pool, [17])
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        Curves(pool, [0, 1])


def test_candidates_without_a_score_are_left_out_for_all_rules(tmp_path):
    rows = [
        {"prompt": "p", "proxy": 1.0, "gold": 2},
        {"prompt": "p", "proxy": None, "gold": 2},
        {"prompt": "p", "proxy": 1, "gold": math.nan},
        {"prompt": "p", "proxy": "0.5", "gold": True},
        {"proxy": 1, "gold": 1},
    ]
    path = write_rows(tmp_path / "c.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n")
    pool = read_pool(path, proxies=["proxy"], gold="gold")
    assert (pool.without_score, pool.report.malformed, pool.report.read) == (2, 2, 6)
    assert pool.scores["proxy"].tolist() == [1.0, 0.5]
    assert pool.gold.tolist() == [2.0, 1.0]
    assert pool.report.reasons[0] == (5, 'no "prompt_id" and no "prompt"')
    with pytest.raises(DataError, match=r"no column prxy\. Columns found: prompt, proxy, gold"):
        read_pool(path, proxies=["prxy"], gold="gold")
    with pytest.raises(ConfigError, match="oracle stands for a built-in rule"):
        read_pool(path, proxies=["oracle"], gold=None)
    empty = write_rows(tmp_path / "e.jsonl", [{"prompt": "p", "proxy": None}])
    with pytest.raises(DataError, match=r"no candidate is left of 1 rows .*1 without a finite proxy"):
        read_pool(empty, proxies=["proxy"], gold=None)


@pytest.mark.parametrize("other", ["train", None])  # no split column counts as train
def test_candidates_of_another_split_are_left_out_and_counted(tmp_path, other):
    rows = pool_rows()
    unwanted = [row | {"proxy": 1e6, "gold": 1e6} | ({"split": other} if other else {}) for row in rows]
    mixed = write_rows(tmp_path / "c.jsonl", [*unwanted, *(row | {"split": "test"} for row in rows)])
    folder = tmp_path / "folder"  # told apart by the names of the files: no row says its split
    write_rows(folder / "train.jsonl", [row | {"proxy": 1e6} for row in rows])
    write_rows(folder / "test.jsonl", rows)
    wanted = read_pool(write_rows(tmp_path / "w.jsonl", rows), proxies=["proxy"], gold="gold")
    for source, left_out in ((mixed, len(rows)), (folder, 0)):
        pool = read_pool(source, proxies=["proxy"], gold="gold", split="test")
        assert pool.scores["proxy"].tolist() == wanted.scores["proxy"].tolist()
        assert pool.gold.tolist() == wanted.gold.tolist()
        assert (pool.report.read, pool.report.other_split) == (len(rows), left_out)
    with pytest.raises(DataError, match=r"none of its 72 rows is of the split that was asked for"):
        read_pool(mixed, proxies=["proxy"], gold="gold", split="validation")


# The job


def test_the_split_decides_about_the_gold_column_too_and_the_table_counts_what_is_left_out(tmp_path):
    rows = [row | {"split": "test"} for row in pool_rows()]
    unwanted = [{"prompt_id": 0, "text": "x", "proxy": 1e6, "split": "train"}] * 7  # and no gold
    mixed = write_rows(tmp_path / "c.jsonl", [*unwanted, *rows])
    summary = best_of_n(candidates=mixed, split="test", output_dir=tmp_path / "out", resamples=10)
    assert (summary["gold"], summary["counts"]["candidates"]) == ("gold", len(rows))
    assert summary["provenance"]["data"][0]["other_split"] == 7
    assert "7 candidates of other splits left out" in (tmp_path / "out" / "best_of_n.md").read_text()
    write_rows(tmp_path / "folder" / "validation.jsonl", rows[:3])
    write_rows(tmp_path / "folder" / "test.jsonl", rows)
    summary = best_of_n(candidates=tmp_path / "folder", split="test", output_dir=tmp_path / "out", resamples=10)
    assert (summary["gold"], summary["counts"]["candidates"]) == ("gold", len(rows))


def test_files_table_and_picture_of_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "c.jsonl", pool_rows(candidates=8))
    argv = ["best-of-n", "--candidates", "c.jsonl", "--proxy", "proxy", "--proxy", "other", "--resamples", "100"]
    assert cli.main([*argv, "--n", "1,2,8", "--output-dir", "out"]) == 0
    printed = capsys.readouterr().out
    assert "Paired differences at n = 8" in printed
    assert "WARNING: 6 prompts have fewer than twice the largest n" in printed
    summary, points = read_best_of_n("out")
    assert summary["proxies"] == ["proxy", "other", "longest"]
    assert summary["provenance"]["data"][0]["kept"] == 48
    assert summary["ties"]["proxy"] > 0
    assert {point["rule"] for point in points} == {"proxy", "other", "longest", "oracle", "random"}
    markdown = (tmp_path / "out" / "best_of_n.md").read_text()
    assert markdown.count("|\n|") > 8
    assert f"{points[0]['gold']['value']:.1f}" in markdown
    assert (tmp_path / "out" / "best_of_n.png").read_bytes().startswith(b"\x89PNG")


def test_without_gold_the_proxy_has_a_curve_of_its_own(tmp_path):
    rows = [{name: cell for name, cell in row.items() if name != "gold"} for row in pool_rows()]
    summary = best_of_n(
        candidates=write_rows(tmp_path / "c.jsonl", rows), output_dir=tmp_path / "out", sizes=[1, 2], resamples=20
    )
    points = list(read_jsonl(tmp_path / "out" / CURVES_FILE))
    assert (summary["gold"], summary["differences"], summary["agreement"]) == (None, [], {})
    assert {point["rule"] for point in points} == {"proxy", "longest"}
    assert all(point["gold"]["value"] is None and point["score"]["value"] is not None for point in points)
    assert plot_best_of_n(tmp_path / "out").exists()


def test_the_built_in_generator_gives_gold_that_is_the_true_reward(tmp_path):
    summary = best_of_n(synthetic=8, sampling=Sampling(samples=12), output_dir=tmp_path, seed=3, resamples=20)
    rewards = {}
    for row in generate_candidates(8, 12, seed=3):
        rewards.setdefault(row["prompt_id"], []).append(row["true_reward"])
    oracle = {point["n"]: point["gold"]["value"] for point in read_best_of_n(tmp_path)[1] if point["rule"] == "oracle"}
    for n in summary["sizes"]:
        exact = np.mean([np.mean([max(subset) for subset in combinations(own, n)]) for own in rewards.values()])
        assert oracle[n] == pytest.approx(exact, abs=1e-12)
    assert summary["sizes"] == [1, 2, 4]


def test_reward_models_score_the_candidates(tmp_path, checkpoint, encoder_checkpoint):
    rows = [
        {"prompt_id": prompt, "prompt": f"w{10 + prompt} ", "text": f"w{20 + index} w{5 + prompt}"}
        for prompt in range(3)
        for index in range(4)
    ]
    settings = {
        "candidates": write_rows(tmp_path / "c.jsonl", rows),
        "proxy_models": {"first": str(checkpoint)},
        "gold_model": str(encoder_checkpoint),
        "scoring": {"device": "cpu"},
        "resamples": 20,
    }
    summary = best_of_n(output_dir=tmp_path / "out", **settings)
    assert (summary["proxies"], summary["gold"]) == (["first", "longest"], "gold")
    scored = list(read_jsonl(tmp_path / "out" / "scored" / "gold.jsonl"))
    assert all(isinstance(row["first"], float) and isinstance(row["gold"], float) for row in scored)
    assert [row["text"] for row in scored] == [row["text"] for row in rows]
    again = best_of_n(output_dir=tmp_path / "out", **settings)
    for name in ("counts", "spread", "agreement"):
        assert again[name] == summary[name]


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as refused:
        best_of_n(output_dir=tmp_path, prompts="x", candidates="y", server="http://z", confidence=2,
                  sampling=Sampling(temperature=0, top_p=0, samples=0))  # fmt: skip
    for part in ("candidates and prompts", "prompts and policy", "server needs", "temperature", "top_p", "samples must",
                 "confidence"):  # fmt: skip
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n", "1,x"], "whole numbers between commas"),
        (["--proxy_model", "a/model", "--proxy_model", "b/model"], "Two proxy models are named 'model'"),
        (["--api_key_variable", "NO_SUCH_KEY"], "NO_SUCH_KEY, which is not set"),
    ],
)
def test_mistakes_on_the_command_line(argv, message, capsys):
    assert cli.main(["best-of-n", "--candidates", "c.jsonl", *argv]) == 2
    assert message in capsys.readouterr().err


# Sampling


@pytest.fixture(scope="module")
def policy(tmp_path_factory, checkpoint):
    """A tiny causal language model with the tokenizer of the tiny reward model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("policy")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_policy_answers_reproducibly_and_goes_on_after_a_kill(tmp_path, policy):
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "w5 " * (1 + index % 3)} for index in range(18)])
    settings = {
        "prompts": prompts, "policy": str(policy), "scoring": {"device": "cpu"}, "resamples": 10, "seed": 1,
        "sampling": Sampling(samples=4, max_new_tokens=6, batch_sequences=8),
    }  # fmt: skip
    best_of_n(output_dir=tmp_path / "whole", **settings)
    rows = list(read_jsonl(tmp_path / "whole" / "candidates.jsonl"))
    assert len(rows) == 18 * 4
    assert [row["prompt_id"] for row in rows[:5]] == ["row-1"] * 4 + ["row-2"]
    assert len({row["response"] for row in rows}) > 60
    assert {row["tokens"] for row in rows} <= set(range(1, 7))
    for row in rows:  # a word is a token; the end is one too, and is not part of the text
        assert row["tokens"] >= len(row["response"].split()) + row["finished"]
        assert row["finished"] or row["tokens"] == 6

    def dies(stage, done):
        if done > 8:
            raise Killed

    with pytest.raises(Killed):
        best_of_n(output_dir=tmp_path / "cut", progress=dies, **settings)
    best_of_n(output_dir=tmp_path / "cut", **settings)
    whole, cut = ((tmp_path / name / "candidates.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    with pytest.raises(StateError, match="seed was 1, now 2"):
        best_of_n(output_dir=tmp_path / "cut", **(settings | {"seed": 2}))
    best_of_n(output_dir=tmp_path / "cut", overwrite=True, **(settings | {"seed": 2}))
    assert (tmp_path / "cut" / "candidates.jsonl").read_bytes() != whole
    with pytest.raises(ConfigError, match="more than the 64 the model reads"):
        best_of_n(output_dir=tmp_path / "long", **(settings | {"sampling": Sampling(max_new_tokens=64)}))


def test_prompts_that_cannot_be_answered_are_refused(tmp_path):
    assistant = [{"role": "assistant", "content": "hi"}]
    for row, problem in (
        ({"question": "a"}, 'wanted a "prompt".* found NoneType. Columns: question'),
        ({"prompt": assistant}, "messages that end with the user"),
        ({"prompt": "  "}, 'wanted a "prompt"'),
        ({"prompt": ["a"]}, "messages that end with the user"),
        ({"prompt": "half \ud83d"}, 'row 1: "prompt" holds a lone surrogate at character 5'),
        ({"prompt": [{"role": "user", "content": "\ud83d"}]}, '"prompt" holds a lone surrogate'),
        ({"prompt": "a", "id": "\ud83d"}, '"id" holds a lone surrogate'),
    ):
        with pytest.raises(DataError, match=problem):
            read_prompts(write_rows(tmp_path / "p.jsonl", [row]))
    twice = [{"prompt_id": 1, "prompt": "a"}, {"prompt_id": 1, "prompt": "b"}]
    with pytest.raises(DataError, match='the prompt id "1" was used before'):
        read_prompts(write_rows(tmp_path / "p.jsonl", twice))
    many = write_rows(tmp_path / "p.jsonl", [{"prompt": str(index)} for index in range(50)])
    prompts, _ = read_prompts(many, limit=5, seed=1)
    assert len(prompts) == 5
    assert [prompt.prompt for prompt in prompts] != [str(index) for index in range(5)]


def test_prompts_of_a_split(tmp_path):
    named = {"train": ["a", "b"], "test": ["c", "d", "e"]}
    rows = [{"prompt": text, "split": split} for split, texts in named.items() for text in texts]
    mixed = write_rows(tmp_path / "p.jsonl", [*rows, {"prompt": "f"}])
    for split, texts in named.items():
        write_rows(tmp_path / "folder" / f"{split}.jsonl", [{"prompt": text} for text in texts])
    for source, split, wanted in (
        (mixed, "test", ["c", "d", "e"]),
        (mixed, "train", ["a", "b", "f"]),
        (mixed, None, ["a", "b", "c", "d", "e", "f"]),
        (tmp_path / "folder", "test", ["c", "d", "e"]),  # its rows say no split
    ):
        assert [prompt.prompt for prompt in read_prompts(source, split=split)[0]] == wanted
    with pytest.raises(DataError, match="none of its 6 rows is of the split that was asked for"):
        read_prompts(mixed, split="validation")
    with pytest.raises(ConfigError, match="limit must be at least 1, found 0"):
        best_of_n(prompts=mixed, policy="p", sampling=Sampling(limit=0), output_dir=tmp_path / "out")


def test_candidates_of_one_split_are_not_taken_for_those_of_another(tmp_path):
    class Echo:
        prompts_per_part = 4

        def describe(self):
            return {"sampler": "echo"}

        def __call__(self, prompts, samples, *, seed):
            return [[Answer(str(prompt.prompt), finished=True)] * samples for prompt in prompts]

    mixed = write_rows(tmp_path / "p.jsonl", [{"prompt": s, "split": s} for s in ("train", "test")])
    target = tmp_path / "candidates.jsonl"

    def sample(split, prompts=None, **settings):
        found, digest = read_prompts(mixed, split=split)
        how = {"samples": 2, "seed": 0, "digest": digest, "split": split} | settings
        sample_candidates(Echo(), prompts or found, target, **how)
        return [row["response"] for row in read_jsonl(target)]

    assert sample("train") == ["train"] * 2
    with pytest.raises(StateError, match='split was "train", now "test"; prompts_sha256 was'):
        sample("test")
    with pytest.raises(StateError, match="another run: prompts_sha256 was"):
        sample("train", [Prompt("row-1", "another")])
    assert sample("test", overwrite=True) == ["test"] * 2


class StandIn(BaseHTTPRequestHandler):
    """Speaks as much of OpenAI's protocol as vLLM does here: n answers, each the prompt, the seed and a number."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, body, self.headers.get("Authorization")))
            troubles = server.troubles
            trouble = troubles.pop(0) if troubles else None
        if trouble == "hang up":
            self.close_connection = True
            self.connection.close()
            return None
        if isinstance(trouble, int):
            return self.reply(trouble, {"error": {"message": f"trouble {trouble}"}})
        if isinstance(trouble, str):
            return self.reply(200, trouble)
        if body["model"] != "served":
            return self.reply(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        asked = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        texts = [f"{asked} {body['seed']} {index}" for index in range(body["n"])]
        if "prompt" in body:
            choices = [{"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(texts)]
        else:
            choices = [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": ("stop", "length")[i % 2],
                }
                for i, text in enumerate(texts)
            ]
        return self.reply(200, {"choices": choices})

    def reply(self, status, content):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://elsewhere.invalid/v1/chat/completions")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def stand_in():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.seen, server.troubles, server.lock = [], [], threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def sampler(stand_in, **settings):
    return ServerSampler(stand_in.url, settings.pop("model", "served"), pause=0.001, **settings)


def test_a_server_answers_in_order_with_what_was_asked(stand_in):
    prompts = [Prompt("a", "first"), Prompt("b", [{"role": "user", "content": "second"}])]
    answers = sampler(stand_in, temperature=0.7, top_p=0.9, max_new_tokens=5, api_key="secret")(prompts, 70, seed=4)
    assert [len(several) for several in answers] == [70, 70]
    assert all(answer.text.startswith("first ") for answer in answers[0])
    assert all(answer.text.startswith("second ") for answer in answers[1])
    assert len({answer.text for answer in answers[0]}) == 70  # the two requests of a prompt have seeds of their own
    assert answers[0][0].finished
    assert not answers[0][1].finished
    assert len(stand_in.seen) == 4
    path, body, key = stand_in.seen[0]
    assert path == "/v1/chat/completions"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 5)
    assert sorted(body["n"] for _, body, _ in stand_in.seen) == [6, 6, 64, 64]
    assert key == "Bearer secret"
    plain = sampler(stand_in, plain=True)(prompts[:1], 1, seed=4)
    assert plain[0][0].text.startswith("first ")
    assert stand_in.seen[-1][0] == "/v1/completions"
    assert stand_in.seen[-1][2] is None


def test_a_busy_server_is_asked_again_and_a_broken_one_is_named(stand_in):
    prompt = [Prompt("a", "first")]
    stand_in.troubles = [503, "hang up", 429]
    assert len(sampler(stand_in)(prompt, 2, seed=0)[0]) == 2
    assert len(stand_in.seen) == 4
    stand_in.troubles = [500] * 3
    with pytest.raises(ConfigError, match=r"did not answer in 3 attempts \(last: status 500: .*trouble 500.*goes on"):
        sampler(stand_in, attempts=3)(prompt, 1, seed=0)
    with pytest.raises(ConfigError, match=r"refused the request with status 404.*`other` does not exist.*--policy"):
        sampler(stand_in, model="other")(prompt, 1, seed=0)
    stand_in.troubles = [302]
    with pytest.raises(ConfigError, match="status 302"):  # no other address than the one that was given
        sampler(stand_in)(prompt, 1, seed=0)
    stand_in.troubles = ["<html>"]
    with pytest.raises(DataError, match="did not reply with JSON: <html>"):
        sampler(stand_in)(prompt, 1, seed=0)
    stand_in.troubles = ['{"object": "list"}']
    with pytest.raises(DataError, match="did not reply with choices"):
        sampler(stand_in)(prompt, 1, seed=0)
    stand_in.troubles = ['{"choices": []}']
    with pytest.raises(DataError, match="gave 0 answers to prompt a, 1 were asked for"):
        sampler(stand_in)(prompt, 1, seed=0)
    with pytest.raises(ConfigError, match="not an address"):
        ServerSampler("localhost:8000", "served")


def test_sampling_from_a_server_goes_on_where_it_failed(tmp_path, stand_in):
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"p{index}", "id": index} for index in range(40)])
    settings = {
        "prompts": prompts, "policy": "served", "server": stand_in.url + "/v1", "resamples": 10,
        "sampling": Sampling(samples=4, parallel=1),
    }  # fmt: skip
    best_of_n(output_dir=tmp_path / "whole", **settings)
    asked = len(stand_in.seen)
    stand_in.troubles = [None] * 35 + [400]
    with pytest.raises(ConfigError, match="status 400"):
        best_of_n(output_dir=tmp_path / "cut", **settings)
    stand_in.seen.clear()
    stand_in.troubles = []
    summary = best_of_n(output_dir=tmp_path / "cut", **settings)
    assert len(stand_in.seen) == 8  # the second group of prompts, not the first
    assert asked == 40
    whole, cut = ((tmp_path / name / "candidates.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert (summary["proxies"], summary["counts"]["candidates"]) == (["longest"], 160)
    assert (tmp_path / "cut" / BEST_OF_N_FILE).exists()
