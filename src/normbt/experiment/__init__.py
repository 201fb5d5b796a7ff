"""Grids of methods, training sets, learning rates and seeds: train, evaluate and compare, continued when cut short."""

from normbt.experiment.job import run_experiment
from normbt.experiment.recipe import Recipe, read_recipe, shipped_recipes

__all__ = ["Recipe", "read_recipe", "run_experiment", "shipped_recipes"]
