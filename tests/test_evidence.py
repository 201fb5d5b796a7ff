"""The batched heads of `benchmarks.evidence` against plain loops with the package's own loss module."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.evidence import features, frozen, heads, mechanism, pages, plots, summary
from benchmarks.evidence.experiments import TOGETHER, Experiment, collect
from benchmarks.evidence.heads import Arm, Data, Training

from normbt.experiment import run_experiment
from normbt.experiment.recipe import parse_recipe
from normbt.losses import bt_loss, scaled_bt_loss
from normbt.results import read_evaluation
from normbt.stats import holm
from normbt.suites.rewardbench import SECTIONS
from normbt.weights import NormBTLoss

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data() -> Data:
    """Random pairs in which chosen answers lie a little to one side."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 2, 6, generator=generator)
    features[:, 0, 0] += 1.0
    return Data(features, torch.rand(40, generator=generator) * 90 + 10, torch.rand(40, generator=generator) + 0.5)


def plain_loop(arm: Arm, data: Data, training: Training, seed: int, flips: np.ndarray | None = None) -> torch.Tensor:
    """One run as a user would write it; returns the reward differences of the pairs."""
    torch.manual_seed(seed)
    inner, outer = torch.nn.Linear(6, heads.HIDDEN), torch.nn.Linear(heads.HIDDEN, 1, bias=False)
    body = torch.nn.Sequential(inner, torch.nn.GELU())
    if arm.layer_norm:
        body.append(torch.nn.LayerNorm(heads.HIDDEN, elementwise_affine=False))
    parameters = [*inner.parameters(), *outer.parameters()]
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)
    else:
        momentum = 0.9 if training.optimizer == "momentum" else 0.0
        optimizer = torch.optim.SGD(parameters, lr=training.learning_rate, momentum=momentum)
    pair_loss = {None: bt_loss, "inside": bt_loss, "outside": scaled_bt_loss}[arm.margin]
    weighted = NormBTLoss(beta=arm.beta, max_weight=arm.max_weight, loss=pair_loss)
    batches = [batch[0] for batch in heads.orders(len(data.features), training, [seed])]
    for step, batch in enumerate(batches):
        chosen, rejected = data.features[batch, 0], data.features[batch, 1]
        if flips is not None:
            turned = torch.as_tensor(flips)[batch][:, None]
            chosen, rejected = torch.where(turned, rejected, chosen), torch.where(turned, chosen, rejected)
        hidden = body(chosen), body(rejected)
        rewards = [outer(one).squeeze(-1) for one in hidden]
        margin = None if arm.margin is None else data.margin[batch]
        if arm.weighting == "normbt":
            loss = weighted(*rewards, *hidden, margin)
        else:
            loss = (pair_loss(*rewards) if margin is None else pair_loss(*rewards, margin)).mean()
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (1 - step / len(batches))
        optimizer.zero_grad()
        loss.backward()
        if arm.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, arm.clip)
        optimizer.step()
    with torch.no_grad():
        both = outer(body(data.features)).squeeze(-1)
    return both[:, 0] - both[:, 1]


def leads(arms: list[Arm], found: heads.Heads, data: Data) -> torch.Tensor:
    """Reward differences of the pairs, shape ``(arms, seeds, pairs)``."""
    rows = torch.cat([data.features[:, 0], data.features[:, 1]]).expand(len(found.inner), -1, -1)
    with torch.no_grad():
        chosen, rejected = torch.stack(heads.forward(arms, found, rows)[1]).chunk(2, dim=2)
    return chosen - rejected


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_batched_heads_are_those_of_a_plain_loop(data: Data, optimizer: heads.Optimizer) -> None:
    """Arms and seeds trained together give what each gives alone, with flipped labels and a mean that moves."""
    arms = [
        Arm(),
        Arm("normbt", beta=0.5, max_weight=2.0),
        Arm("normbt", beta=0.99, max_weight=None, margin="outside"),
        Arm(layer_norm=True, margin="inside"),
        Arm(clip=0.05),
    ]
    training = Training(optimizer, learning_rate=0.02, batch=8, epochs=3)
    seeds, flips = [3, 4], np.random.default_rng(0).random((2, 40)) < 0.2
    found = leads(arms, heads.train(arms, data, training, seeds, data, flips=flips).heads, data)
    for place, arm in enumerate(arms):
        for row, seed in enumerate(seeds):
            alone = plain_loop(arm, data, training, seed, flips[row])
            torch.testing.assert_close(found[place, row], alone, rtol=2e-4, atol=2e-5)


def test_variants_of_the_weight(data: Data) -> None:
    """Each variant is the formula that the page gives for it."""
    distance = torch.tensor([[1.0, 4.0, 16.0], [2.0, 2.0, 2.0]])
    fresh = heads.EmaState(torch.zeros(2), torch.zeros(2, dtype=torch.long))

    def weight(arm: Arm, progress: float = 1.0, state: heads.EmaState = fresh) -> torch.Tensor:
        return heads._weights(arm, distance, state, progress=progress)[0]

    torch.testing.assert_close(weight(Arm("normbt", power=0.5))[0], 7 / 3 / torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(weight(Arm("raw"))[1], torch.full((3,), 0.5))
    torch.testing.assert_close(weight(Arm("normbt", max_weight=2.0))[0], torch.tensor([2.0, 1.75, 0.4375]))
    torch.testing.assert_close(weight(Arm("normbt", anneal="in"), progress=0.0), torch.ones(2, 3))
    torch.testing.assert_close(weight(Arm("normbt", anneal="out"), progress=0.5)[0], 0.5 + 3.5 / distance[0])
    later = heads.EmaState(torch.tensor([2.0, 4.0]), torch.ones(2, dtype=torch.long))
    torch.testing.assert_close(weight(Arm("normbt"), state=later)[1], torch.full((3,), 2.0))
    torch.testing.assert_close(weight(Arm("batch"), state=later)[1], torch.ones(3))


def test_the_gradient_norm_of_a_head_is_that_of_autograd(data: Data) -> None:
    """For every seed and arm, a pair of equal answers among them."""
    found = heads.start(6, arms=2, seeds=[3, 4])
    features = data.features.clone()
    features[0, 1] = features[0, 0]
    sides = [side.expand(2, -1, -1) for side in features.unbind(1)]
    for place in range(2):
        norms = heads.score_gradient_norm(found, place, *sides)
        assert norms[:, 0].tolist() == [0.0, 0.0]
        for seed, pair in itertools.product(range(2), range(1, 40, 13)):
            rewards = heads.forward([Arm(), Arm()], found, features[pair].expand(2, -1, -1))[1][place]
            parts = torch.autograd.grad(rewards[seed, 0] - rewards[seed, 1], list(found))
            expected = torch.cat([part.flatten() for part in parts]).norm()
            torch.testing.assert_close(norms[seed, pair], expected, rtol=1e-5, atol=0)


def test_an_arm_may_weigh_by_the_gradient_norm(data: Data) -> None:
    """One step of plain gradient descent moves along the sum of the weighted gradients."""
    training = Training("sgd", learning_rate=0.5, batch=40, epochs=1)
    arms = [Arm("normbt", gradient_norm=True, max_weight=None), Arm("normbt", max_weight=None)]
    trained = heads.train(arms, data, training, [3], data)
    first = heads.start(6, arms=2, seeds=[3])
    norms = heads.score_gradient_norm(first, 0, data.features[None, :, 0], data.features[None, :, 1])[0]
    assert trained.mu[0, 0, 0] == pytest.approx(norms.mean().item(), rel=1e-5)
    rewards = heads.forward(arms, first, data.features.transpose(0, 1).flatten(0, 1)[None])[1][0][0]
    loss = bt_loss(*rewards.chunk(2)) * norms.mean() / (norms + 1e-6)
    (gradient,) = torch.autograd.grad(loss.mean(), [first.inner])
    torch.testing.assert_close(trained.heads.inner[:, :, 0], (first.inner - 0.5 * gradient)[:, :, 0])
    assert not torch.allclose(trained.heads.inner[:, :, 0], trained.heads.inner[:, :, 1])


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random features in which right answers lie a little to one side; all shares, three files."""
    generator = np.random.default_rng(0)
    subsets = ["mt-bench-hard", "xstest-should-refuse", "math-prm", "alpacaeval-easy"]
    shares = ["train"] * 140 + ["validation"] * 20 + ["test"] * 40 + ["rewardbench"] * 40
    mean = generator.normal(size=(240, 2, 6)).astype(np.float32)
    mean[:, 0, 0] += 1.0
    mean[:, :, 5] = 3.0  # a feature that never changes
    path = tmp_path_factory.mktemp("features") / "some.npz"
    pairs = features.Pairs(
        mean=mean,
        pooled=mean,
        tokens=generator.integers(5, 50, size=(240, 2), dtype=np.int32),
        share=np.array(shares),
        category=np.array(["chat", "reasoning"] * 120),
        subset=np.array(["one", "two"] * 100 + subsets * 10),
        cluster=np.array([f"cluster-{row // 2}" for row in range(240)]),
        margin=generator.random(240).astype(np.float32),
    )
    features.save(path, pairs)
    return path


def small(bench: mechanism.Bench) -> mechanism.Bench:
    """The bench with little training."""
    training = replace(bench.base, batch=16, epochs=2)
    return replace(bench, seeds=[0, 1, 2], search_seeds=[9], base=training, rates={"adamw": [0.01, 0.03]})


def test_search_goes_on_beyond_its_list_and_is_written_down(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rate of a search that would go on for ever is marked; ties go to the smallest rate."""
    bench = small(mechanism.bench_of(extracted))

    def train(arms: list[Arm], data: Data, training: Training, *_: object, **__: object) -> heads.Trained:
        share = {1e-3: 0.5, 3e-3: 0.75, 0.01: 0.75, 0.03: 0.5}.get(training.learning_rate, 0.25)
        right = np.arange(20) < 20 * share
        return heads.Trained(None, np.tile(right, (1, len(arms), 1, 1)), np.zeros((1, 1, 1)), 1)  # type: ignore[arg-type]

    monkeypatch.setattr(mechanism, "train", train)
    sheet = mechanism.new_sheet(bench)
    assert mechanism.chosen_rates(bench, {"bt": Arm()}, bench.base, sheet, place="here") == {"bt": 3e-3}
    assert sheet.search == [
        {
            "condition": {"place": "here"},
            "arm": "bt",
            "rates": {"0.001": 0.5, "0.003": 0.75, "0.01": 0.75, "0.03": 0.5},
            "chosen": 3e-3,
            "at_edge": False,
        }
    ]


def test_noise_is_where_it_is_said_to_be(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate counts over the half that is named, and no pair outside it is turned round."""
    bench = small(mechanism.bench_of(extracted))
    turned: dict[tuple[str, float], np.ndarray] = {}

    def add_cells(*_: object, flips: np.ndarray, placed: str, rate: float) -> None:
        turned[placed, rate] = flips

    monkeypatch.setattr(mechanism, "chosen_rates", lambda *_, **__: {})
    monkeypatch.setattr(mechanism, "add_cells", add_cells)
    mechanism.noise_sweep(bench)
    assert len(turned) == 10
    distance = mechanism.start_distance(bench.train)
    nearer = distance < np.median(distance)
    assert (turned["near", 0.2].sum(axis=1) == 14).all()
    assert (turned["evenly", 0.2].sum(axis=1) == 28).all()
    assert not (turned["near", 0.3] & ~nearer).any()
    assert not (turned["far", 0.3] & nearer).any()
    assert (turned["near", 0.1] <= turned["near", 0.2]).all()
    assert not turned["nowhere", 0.0].any()


def test_sweep_is_written_and_read_back(extracted: Path, tmp_path: Path) -> None:
    """A summary holds every arm and seed, and another sweep beside it stays."""
    bench = small(mechanism.bench_of(extracted))
    file = tmp_path / "mechanism.json"
    summary.write_sweep(file, "other", {"cells": []}, about={"command": "this"})
    summary.write_sweep(file, "balance", vars(mechanism.balance_sweep(bench)), about={"command": "this"})
    sweep = summary.read_sweep(file, "balance")
    assert summary.read_sweep(file, "other")["cells"] == []
    assert [cell["condition"]["near_share"] for cell in summary.cells_of(sweep, "bt")] == [0.1, 0.5, 0.9]
    cell = summary.cell_of(sweep, "normbt", near_share=0.5)
    assert len(cell["outcomes"]["near"]) == 3
    assert cell["mu"][0] > 0
    with pytest.raises(LookupError, match="found 3"):
        summary.cell_of(sweep, "bt")


def test_comparisons_of_the_frozen_sweep(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences are those of the cells' own numbers, and Holm's correction is over the arms of one score."""
    bench, parts = frozen.bench_of(extracted)
    monkeypatch.setattr(frozen, "ARMS", {name: frozen.ARMS[name] for name in ("bt", "normbt", "cosine")})
    sheet = frozen.frozen_sweep(small(bench), parts)
    by_arm = {cell["arm"]: cell["outcomes"] for cell in sheet.cells}
    section = (1.0 * np.array([by_arm["bt"][f"rewardbench/{name}"] for name in SECTIONS])).mean(axis=0)
    np.testing.assert_allclose(section, by_arm["bt"]["rewardbench/headline"], atol=2e-4)
    rows = [row for row in sheet.comparisons if row["against"] == "bt" and row["score"] == "held-out/headline"]
    assert [row["arm"] for row in rows] == ["normbt", "cosine"]
    for row in rows:
        own, other = (by_arm[name]["held-out/all"] for name in (row["arm"], "bt"))
        assert row["difference"] == pytest.approx(np.mean(own) - np.mean(other), abs=2e-4)
    for kind in ("seeds", "both"):
        adjusted = holm([row[f"{kind}_p"] for row in rows])
        np.testing.assert_allclose([row[f"{kind}_holm"] for row in rows], adjusted, rtol=1e-4)


@pytest.mark.parametrize("name", list(pages.PAGES))
def test_pages_are_those_of_the_committed_summaries(name: str) -> None:
    """No number on the page was typed by hand, and no sentence states a direction that the numbers do not have."""
    written = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert written == pages.render(name, ROOT / "docs" / "results"), "run python -m benchmarks.evidence.pages"


def test_a_sentence_that_no_longer_fits_is_refused() -> None:
    """A template cannot say that an arm is better where its interval holds zero or lies on the other side."""
    numbers = pages.Numbers(ROOT / "docs" / "results", pages.PAGES["results-mechanism"])
    assert numbers.gain("grid", "normbt", "near", expect="+").startswith("+")
    with pytest.raises(pages.StaleText, match=r"expects normbt - bt on near .* to be -, found \+"):
        numbers.gain("grid", "normbt", "near", expect="-")


@pytest.mark.parametrize(
    ("difference", "p_holm", "seeds", "verdict"),
    [
        (0.05, 0.01, (0.01, 0.09), "shown"),
        (0.05, 0.01, (-0.01, 0.11), "not shown"),
        (0.05, 0.06, (0.01, 0.09), "not shown"),
        (-0.05, 0.01, (-0.09, -0.01), "shown against"),
        (-0.05, 0.01, (-0.11, 0.01), "not shown"),
    ],
)
def test_a_difference_is_shown_by_pairs_and_seeds_together(
    tmp_path: Path, difference: float, p_holm: float, seeds: tuple[float, float], verdict: str
) -> None:
    row = {"method": "normbt", "outcome": "accuracy", "kind": "headline", "difference": difference, "p_holm": p_holm}
    test = {"method": "normbt", "outcome": "accuracy", "low": seeds[0], "high": seeds[1]}
    cells = [{"method": method, "seed": 0} for method in ("bt", "normbt")]
    record = {
        "name": "made up",
        "recipe": {"baseline": "bt", "primary": ["suite"]},
        "cells": cells,
        "comparisons": {"suite": {"differences": [row], "seed_tests": [test]}},
    }
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    found = Experiment(file)
    assert found.verdict("normbt", "suite") == verdict
    assert found.both("better") == (["normbt on suite"] if verdict == "shown" else [])
    assert found.both("worse") == (["normbt on suite"] if verdict == "shown against" else [])


def test_an_experiment_is_collected_with_its_bins_of_distance(
    checkpoint: Path, many_pairs: Path, tmp_path: Path
) -> None:
    """Every decision of every model is in one bin, the bins are the baseline's, and a missing run is named."""
    one = {"suite": "pairs", "data": str(many_pairs)}
    recipe = {
        "name": "tiny",
        "train": {
            "model_name_or_path": str(checkpoint),
            "max_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "report_to": "none",
        },
        "methods": {"bt": {"weighting": "none"}, "normbt": {"weighting": "normbt"}},
        "training_sets": {"words": {"source": str(many_pairs), "validation": 0.25}},
        "seeds": [3, 4],
        "learning_rates": [1e-3, 1e-2],
        "suites": {"one": one, "other": {**one, "limit": 20}},
        "baseline": "bt",
        "primary": ["one"],
        "evaluation": {"resamples": 20},
    }
    folder = tmp_path / "experiment"
    run_experiment(parse_recipe(recipe), folder, only=["words/*/seed-3", "words/bt/*"])
    file = tmp_path / "tiny.json"
    file.write_text(summary.as_lines(collect(folder), depth=3), encoding="utf-8")
    found = Experiment(file)
    assert found.record["missing"] == ["words/normbt/seed-4"]
    assert found.record["sizes"] == {"one": 40, "other": 20}
    bins = found.record["by_distance"][TOGETHER]
    assert {method: list(runs) for method, runs in bins.items()} == {"bt": ["3", "4"], "normbt": ["3"]}
    for cell in found.record["cells"]:
        shares = bins[cell["method"]][str(cell["seed"])]
        scores = cell["scores"]
        expected = (40 * scores["one"]["headline"] + 20 * scores["other"]["headline"]) / 60
        assert np.mean(shares) == pytest.approx(expected, abs=1e-4)  # written with four digits
    rate = found.record["cells"][0]["learning_rate"]
    evaluated = folder / f"runs/words/bt/learning-rate-{rate:g}/seed-3"
    rows = [row for suite in ("one", "other") for row in read_evaluation(evaluated / suite)[1]]
    nearest = sorted(rows, key=lambda row: row["distance"] or 0.0)[:6]
    assert bins["bt"]["3"][0] == pytest.approx(np.mean([row["correct"] for row in nearest]), abs=1e-4)
    assert found.by_distance(TOGETHER).count("\n") == 3
    assert f"{found.record['search'][0]['p_value']:.2f} |" in found.rates()
    assert "| normbt | 1 |" in found.accuracies({"one": "One"})
    with pytest.raises(LookupError, match="no comparison over seeds of normbt on one"):  # they have one in common
        found.verdict("normbt", "one")


def test_every_picture_is_there_and_one_is_drawn_again(tmp_path: Path) -> None:
    """The same summary gives the same picture, byte for byte, where the drawing library is the same."""
    for name in plots.drawable(ROOT / "docs" / "results"):
        assert (ROOT / "docs" / "images" / "results" / f"{name}.png").is_file(), name
    first, second = (plots.draw(ROOT / "docs" / "results", tmp_path / one, ["mechanism-bound"])[0] for one in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_sections_come_with_their_sweeps(tmp_path: Path) -> None:
    """A sweep that was not run is named as such; once it is in the summary, its section and its picture are there."""
    results = tmp_path / "results"
    shutil.copytree(ROOT / "docs" / "results", results)
    conditions: dict[str, list[dict[str, Any]]] = {
        "epochs": [{"epochs": epochs} for epochs in (1, 5, 20)],
        "noise": [{"placed": "nowhere", "rate": 0.0}]
        + [{"placed": place, "rate": rate} for rate in (0.1, 0.2, 0.3) for place in ("near", "far", "evenly")],
        "batch-size": [{"batch": size} for size in (4, 16, 64, 256)],
        "balance": [{"near_share": share} for share in (0.1, 0.5, 0.9)],
    }
    known = summary.read_sweeps(results / "mechanism.json")
    file = json.loads((results / "mechanism.json").read_text(encoding="utf-8"))
    file["sweeps"] = {name: sweep for name, sweep in known.items() if name not in conditions}
    (results / "mechanism.json").write_text(json.dumps(file), encoding="utf-8")
    assert "## Not run yet" in pages.render("results-mechanism", results)

    values = {name: [0.7, 0.72, 0.74] for name in ("all", "near", "middle", "far")}
    for name, found in conditions.items():
        cells = [
            {"condition": condition, "arm": arm, "learning_rate": 0.01, "outcomes": values}
            for condition in found
            for arm in ("bt", "normbt", "batch")
        ]
        sweep = {"settings": {"train": 10}, "seeds": [0, 1, 2], "search": [], "cells": cells, "comparisons": []}
        summary.write_sweep(results / "mechanism.json", name, sweep, about={"command": "this"})
    page = pages.render("results-mechanism", results)
    assert "## Not run yet" not in page
    drawn = plots.draw(results, tmp_path, [f"mechanism-{name}" for name in conditions])
    for picture in drawn:
        assert f"images/results/{picture.name}" in page
