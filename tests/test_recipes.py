"""Every recipe that comes with the package: read, its settings accepted by training, and one of its runs trained."""

from pathlib import Path

import pytest
import yaml

from conftest import write_word_pairs
from normbt.arguments import parse_train_arguments
from normbt.experiment import read_recipe, run_experiment, shipped_recipes
from normbt.experiment.cells import final_cells

RECIPES = shipped_recipes()


def test_these_are_the_recipes() -> None:
    assert sorted(RECIPES) == [
        "demo",
        "evidence-decoder",
        "evidence-minilm",
        "llama-3.2-1b-lora",
        "modernbert-base",
        "paper-gemma-2b-skywork",
        "paper-gemma-2b-unified-feedback",
        "paper-llama-3.2-3b-skywork",
        "paper-llama-3.2-3b-unified-feedback",
        "qwen3-0.6b-fsdp2-8-gpus",
        "qwen3-0.6b-full",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_for(name: str) -> None:
    text = RECIPES[name].read_text(encoding="utf-8")
    header = text[: text.index("\nname:")]
    for part in ("# Purpose   ", "# Hardware  ", "# Time      ", f"# Command   normbt experiment {name}\n"):
        assert part in header + "\n"
    assert yaml.safe_load(text)["name"] == name


@pytest.mark.parametrize("name", RECIPES)
def test_training_accepts_the_settings_of_every_method(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    for method in recipe.methods:
        settings = {**recipe.train, **recipe.methods[method], "output_dir": str(tmp_path)}
        file = tmp_path / f"{method}.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        parsed = parse_train_arguments(["--config", str(file)])
        assert parsed.training.weighting == recipe.methods[method]["weighting"]
    assert len(list(final_cells(recipe, {}))) == len(recipe.methods) * len(recipe.seeds)


@pytest.fixture(scope="module")
def rated_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with margins, since some recipes have methods that read them."""
    return write_word_pairs(tmp_path_factory.mktemp("rated") / "pairs.jsonl", 24, margin=[1, 2, 3])


@pytest.mark.parametrize("name", RECIPES)
def test_one_run_of_a_recipe_end_to_end(
    name: str, tmp_path: Path, rated_pairs: Path, checkpoint: Path, encoder_checkpoint: Path
) -> None:
    whole = read_recipe(name)
    model = encoder_checkpoint if name == "demo" or "bert" in name or "minilm" in name else checkpoint
    machine = {"bf16": "false", "use_cpu": "true", "num_processes": "null", "accelerate_config": "null"}
    short = {"model_name_or_path": str(model), "max_steps": "1", "report_to": "none", "disable_tqdm": "true"}
    training_set, method = next(iter(whole.training_sets)), list(whole.methods)[-1]
    recipe = read_recipe(
        name,
        overrides=[
            *(f"train.{key}={value}" for key, value in (machine | short).items()),
            f"training_sets={{{training_set}: {{source: '{rated_pairs}', validation: 0.4}}}}",
            f"suites={{held: {{suite: pairs, data: '{rated_pairs}', limit: 6}}}}",
            "primary=[held]",
            *(["learning_rates=[1.0e-3]"] if whole.learning_rates else []),
            "evaluation={resamples: 20, max_length: 64}",
        ],
    )
    summary = run_experiment(recipe, tmp_path, only=[f"{training_set}/{method}/seed-0"])
    (cell,) = summary["cells"]
    assert cell["method"] == method
    assert 0 <= cell["scores"]["held"]["headline"] <= 1
    assert summary["diagnoses"] == ([f"{cell['folder']}/diagnosis"] if recipe.diagnose else [])
    assert all((tmp_path / folder / "pairs.jsonl").is_file() for folder in summary["diagnoses"])
    assert len(summary["missing"]) == len(recipe.methods) * len(recipe.seeds) - 1
