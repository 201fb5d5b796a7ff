"""Write docs/results.md and the pages beside it, and draw their plots, from the committed summaries.

    python -m benchmarks.evidence.pages

Nothing is trained. The pages are templates in `templates/`; every number in them is computed here, and a sentence that
states a direction says which (`expect`): where the numbers no longer have it, no page is written.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from benchmarks.evidence.choices import Choices
from benchmarks.evidence.experiments import Experiment, table
from benchmarks.evidence.plots import LABELS, draw
from benchmarks.evidence.summary import cell_of, cells_of, read_about, read_sweeps

from normbt.stats import detectable_from_error, paired_t
from normbt.stats.quantiles import normal_quantile

PAGES = {
    "results": ("mechanism.json", "scratch.json", "frozen.json"),
    "results-mechanism": ("mechanism.json", "scratch.json"),
    "results-frozen": ("frozen.json",),
}
"""Name of each page, and the summaries it is made of."""

TEMPLATES = Path(__file__).parent / "templates"


class StaleText(ValueError):
    """A sentence says something that the numbers do not."""


class Numbers:
    """What templates ask of the summaries."""

    def __init__(self, results: Path, files: Iterable[str]) -> None:
        self.about = {file.removesuffix(".json"): read_about(results / file) for file in files}
        self.sweeps: dict[str, Any] = {}
        for file in files:
            self.sweeps |= read_sweeps(results / file)

    def setting(self, sweep: str, key: str) -> Any:
        """A setting of a sweep."""
        return self.sweeps[sweep]["settings"][key]

    def accuracy(self, sweep: str, arm: str, outcome: str = "all", **condition: Any) -> str:
        """Mean over the seeds with its 95 % t interval, in per cent."""
        return _spread(cell_of(self.sweeps[sweep], arm, **condition)["outcomes"][outcome])

    def gain(
        self,
        sweep: str,
        arm: str,
        outcome: str = "all",
        *,
        against: str = "bt",
        expect: str | None = None,
        than: Mapping[str, Any] | None = None,
        **condition: Any,
    ) -> str:
        """Points more than another arm, paired over the seeds, with a 95 % t interval.

        Args:
            sweep: name of the sweep.
            arm: the arm.
            outcome: the set of pairs.
            against: the other arm.
            expect: ``+`` or ``-`` where the interval must lie on that side of zero, ``0`` where it must hold zero.
            than: condition of the other arm where it is another one.
            condition: of the arm.
        """
        own = cell_of(self.sweeps[sweep], arm, **condition)["outcomes"][outcome]
        other = cell_of(self.sweeps[sweep], against, **(condition if than is None else than))["outcomes"][outcome]
        values = np.subtract(own, other).tolist()
        if expect not in (None, _side(values)):
            raise StaleText(
                f"{sweep}: the text expects {arm} - {against} on {outcome} ({condition}) to be {expect}, "
                f"found {_spread(values, sign='+')}"
            )
        return _spread(values, sign="+")

    def sign(self, sweep: str, arm: str, outcome: str = "all", *, against: str = "bt", **condition: Any) -> str:
        """``+`` or ``-`` where the interval of a gain lies on that side of zero, ``0`` where it holds zero."""
        own, other = (cell_of(self.sweeps[sweep], name, **condition)["outcomes"][outcome] for name in (arm, against))
        return _side(np.subtract(own, other).tolist())

    def rate(self, sweep: str, arm: str, **condition: Any) -> str:
        """Learning rate of an arm; with a star where the search ended at the edge of its grid."""
        cell = cell_of(self.sweeps[sweep], arm, **condition)
        return f"{cell['learning_rate']:g}"

    def edges(self, sweep: str) -> list[str]:
        """Searches whose best learning rate is the last one tried."""
        return [
            f"{LABELS.get(row['arm'], row['arm'])} {', '.join(f'{k} {v}' for k, v in row['condition'].items())}".strip()
            for row in self.sweeps[sweep]["search"]
            if row["at_edge"]
        ]

    def by_condition(
        self, sweep: str, key: str, values: Sequence[Any], arms: Sequence[str], outcomes: Sequence[str], **rest: Any
    ) -> str:
        """A row for each value of a condition, an accuracy for each arm and set of pairs."""
        header = [key.replace("_", " "), *(f"{LABELS.get(arm, arm)}, {kind}" for kind in outcomes for arm in arms)]
        rows = []
        for value in values:
            condition = {key: value, **rest}
            found = [self.accuracy(sweep, arm, kind, **condition) for kind in outcomes for arm in arms]
            rows.append([_name(value), *found])
        return table(header, rows)

    def by_arm(self, sweep: str, outcomes: Mapping[str, str], **condition: Any) -> str:
        """A row for each arm: its learning rate and its accuracies."""
        rows = []
        for cell in cells_of(self.sweeps[sweep], **condition):
            found = [_spread(cell["outcomes"][kind]) for kind in outcomes]
            rows.append([LABELS.get(cell["arm"], cell["arm"]), f"{cell['learning_rate']:g}", *found])
        return table(["method", "rate", *outcomes.values()], rows)

    def compared(self, sweep: str, score: str, against: str = "bt") -> str:
        """A row for each arm: its difference from a baseline, with both intervals and corrected p-values."""
        rows = []
        for row in self.comparisons(sweep, score, against):
            ends = [f"[{100 * row[kind][0]:+.1f}, {100 * row[kind][1]:+.1f}]" for kind in ("seeds", "both")]
            p_values = [_p(row[f"{kind}_holm"]) for kind in ("seeds", "both")]
            rows.append(
                [LABELS[row["arm"]], f"{100 * row['difference']:+.1f}", ends[0], p_values[0], ends[1], p_values[1]]
            )
        return table(["method", f"points more than {LABELS[against]}", "seeds", "p", "seeds and pairs", "p"], rows)

    def comparisons(self, sweep: str, score: str, against: str = "bt") -> list[dict[str, Any]]:
        """The records of one family."""
        rows = self.sweeps[sweep]["comparisons"]
        return [row for row in rows if row["score"] == score and row["against"] == against]

    def comparison(self, sweep: str, arm: str, score: str, against: str = "bt") -> str:
        """One difference: with the interval over seeds and pairs, and its corrected p-value."""
        row = next(row for row in self.comparisons(sweep, score, against) if row["arm"] == arm)
        low, high = row["both"]
        return f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p {_p(row['both_holm'])}"

    def winners(self, sweep: str, score: str, against: str = "bt", *, kind: str = "both", sign: int = 1) -> list[str]:
        """Arms that differ from a baseline in one direction after Holm's correction, at 0.05."""
        return [
            LABELS[row["arm"]]
            for row in self.comparisons(sweep, score, against)
            if row[f"{kind}_holm"] < 0.05 and sign * row["difference"] > 0
        ]

    def expect_none(self, sweep: str, scores: Sequence[str]) -> str:
        """Nothing, where no arm is better than BT or NormBT on these scores; the text says so.

        Raises:
            StaleText: an arm is.
        """
        for score in scores:
            for against in ("bt", "normbt"):
                if found := self.winners(sweep, score, against):
                    raise StaleText(f"{sweep}: the text says that no arm beats {against} on {score}; {found} do")
        return ""

    def reach(self, sweep: str, score: str, against: str = "bt") -> str:
        """Points of the smallest difference that 80 % of such comparisons would find, the median over the arms."""
        found = []
        for row in self.comparisons(sweep, score, against):
            # The interval is a t interval with many degrees of freedom: its half is 1.96 standard errors.
            error = (row["both"][1] - row["both"][0]) / 2 / normal_quantile(0.975)
            found.append(detectable_from_error(error, degrees=1e9) or 0.0)
        return f"{100 * float(np.median(found)):.1f}"

    def one_rate(self, sweep: str, outcomes: Mapping[str, str]) -> str:
        """A row for each arm: its differences from BT, with 95 % t intervals over the seeds."""
        arms = [cell["arm"] for cell in self.sweeps[sweep]["cells"] if cell["arm"] != "bt"]
        rows = [[LABELS[arm], *(self.gain(sweep, arm, kind) for kind in outcomes)] for arm in arms]
        return table(["method less BT", *outcomes.values()], rows)

    def mu(self, sweep: str, arm: str, **condition: Any) -> str:
        """The running mean after the first and after the last step."""
        first, last = cell_of(self.sweeps[sweep], arm, **condition)["mu"]
        return f"{first:.2g} to {last:.2g}"

    def scratch(self, categories: Sequence[str]) -> str:
        """From random weights: accuracy by category , a row for each method, rate and step."""
        runs = self.sweeps["scratch"]["runs"]
        rows = []
        for rate in sorted({run["rate"] for run in runs}):
            for arm in dict.fromkeys(run["arm"] for run in runs):
                own = self.runs(arm, rate)
                for step in own[0]["points"] if own else ():
                    found = [_spread([run["points"][step][kind] for run in own]) for kind in categories]
                    rows.append([LABELS[arm], f"{rate:g}", str(len(own)), step, *found])
        return table(["method", "rate", "seeds", "step", *categories], rows)

    def scratch_gain(self, arm: str, rate: float, category: str, step: int | None = None) -> str:
        """From random weights: points more than BT at a step, by default the last, paired over the seeds."""
        own, other = ({run["seed"]: run["points"] for run in self.runs(name, rate)} for name in (arm, "bt"))
        at = str(max(map(int, next(iter(own.values())))) if step is None else step)
        seeds = [seed for seed in own if seed in other]
        return _spread([own[seed][at][category] - other[seed][at][category] for seed in seeds], sign="+")

    def fewest_seeds(self) -> int:
        """Seeds of the method from random weights that has the fewest."""
        runs = self.sweeps["scratch"]["runs"]
        counts = Counter((run["arm"], run["rate"]) for run in runs)
        return min(counts.values())

    def runs(self, arm: str, rate: float) -> list[dict[str, Any]]:
        """Runs from random weights, by seed."""
        found = [run for run in self.sweeps["scratch"]["runs"] if run["arm"] == arm and run["rate"] == rate]
        return sorted(found, key=lambda run: run["seed"])


def _side(values: Sequence[float]) -> str:
    found = paired_t(values)
    low, high = (found.difference if end is None else end for end in (found.low, found.high))
    return "+" if low > 0 else "-" if high < 0 else "0"


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    if len(values) < 2:
        return f"{100 * values[0]:{sign}.1f}"
    found = paired_t(values)
    low, high = (found.difference if end is None else end for end in (found.low, found.high))
    return f"{100 * found.difference:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _name(value: Any) -> str:
    return f"{100 * value:g} %" if isinstance(value, float) and 0 < value < 1 else str(value)


def _listed(names: Sequence[str]) -> str:
    return "none" if not names else names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def render(name: str, results: Path) -> str:
    """The text of a page.

    Args:
        name: of the page.
        results: folder of the summaries.

    Raises:
        StaleText: a sentence no longer fits the numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["listed"] = _listed
    numbers = Numbers(results, PAGES[name])
    tools: dict[str, Callable[..., Any]] = {
        tool: getattr(numbers, tool) for tool in dir(Numbers) if not tool.startswith("_")
    }
    trained: dict[str, Any] = {}
    if name == "results":
        trained["minilm"] = Experiment(results / "evidence-minilm.json")
        trained["at_one_rate"] = Experiment(results / "evidence-minilm-one-rate.json")
        trained["decoder"] = Experiment(results / "evidence-decoder.json")
        trained["pretraining"] = json.loads((results / "decoder-pretraining.json").read_text(encoding="utf-8"))
        trained["choices"] = Choices(results / "best-of-n.json")
    return environment.get_template(f"{name}.md.jinja").render(**tools, **vars(numbers), **trained)


def main() -> None:
    """Write the pages and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    docs: Path = parser.parse_args().docs
    for name in PAGES:
        (docs / f"{name}.md").write_text(render(name, docs / "results"))
        print(docs / f"{name}.md")
    for path in draw(docs / "results", docs / "images" / "results"):
        print(path)


if __name__ == "__main__":
    main()
