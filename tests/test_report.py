"""The report: what it finds, which pairs and texts it shows, what it draws, and what it says."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from html import unescape

import numpy as np
import pytest

from diagnosed import NASTY, nasty_ids, write_diagnosis, write_evaluation, write_training
from normbt import cli
from normbt.errors import ConfigError, DataError, StateError
from normbt.report import write, write_report
from normbt.report.charts import Axis, Panel, Scatter, fit_line, scale_for
from normbt.report.explorer import LONGEST_TEXT, Column, pack_columns, pack_texts, read_table
from normbt.report.plots import draw
from normbt.report.section import Limits
from normbt.report.sections import SECTIONS, diagnosis, training
from normbt.report.sources import Mark, Source, find_sources
from normbt.results import read_json, read_jsonl, write_json, write_jsonl

MARKS = [mark for module in SECTIONS for mark in module.MARKS]
NO_LIMIT = Limits(max_rows=10_000, seed=0)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    return write_diagnosis(tmp_path_factory.mktemp("diagnosis"), 400, nasty=True)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, run in enumerate(("bt", "normbt")):
        write_diagnosis(folder / run / "diagnosis", 200, seed=seed)
        write_evaluation(folder / run / "evaluation", shift=0.5 + seed)
        write_training(folder / run / "model", weighted=run == "normbt")
    return folder


@pytest.fixture
def without_plots(monkeypatch):
    """The page alone: the pictures have tests of their own, and drawing takes seconds."""
    monkeypatch.setattr(write, "draw", lambda chart, folder: folder / f"{chart.name}.png")


def words_of(page):
    """What a reader without scripts sees, on one line."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text)))


def block(page, name):
    """Content of a data block."""
    found = re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return found[1]


def unpacked(page, name):
    return gzip.decompress(base64.b64decode(block(page, name))).decode()


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_runs_are_told_apart_by_what_differs_in_their_paths(two_runs):
    found = find_sources([two_runs], MARKS)
    labels = {mark.kind or mark.file: [source.label for source in sources] for mark, sources in found.sources.items()}
    assert labels == {kind: ["bt", "normbt"] for kind in ("diagnosis", "evaluation", "trainer_state.json")}


def test_several_folders_keep_their_order_and_one_named_twice_is_shown_once(two_runs):
    found = find_sources([two_runs / "normbt", two_runs / "bt", two_runs / "normbt"], MARKS)
    assert [source.label for source in found.sources[Mark("summary.json", "diagnosis")]] == ["normbt", "bt"]


def test_one_result_is_called_by_its_folder(diagnosed):
    (source,) = find_sources([diagnosed], MARKS).sources[Mark("summary.json", "diagnosis")]
    assert source.label == diagnosed.name


def test_the_newest_checkpoint_stands_for_a_run_that_has_no_log_beside_it(tmp_path):
    for step in (50, 200, 1000):
        write_training(tmp_path / "run" / f"checkpoint-{step}", steps=10)
    (source,) = find_sources([tmp_path], MARKS).sources[Mark("trainer_state.json")]
    assert (source.label, source.folder.name) == ("run", "checkpoint-1000")
    write_training(tmp_path / "run", steps=10)
    (source,) = find_sources([tmp_path], MARKS).sources[Mark("trainer_state.json")]
    assert source.folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: None, "no result to report. Wanted one of .*diagnosis.*; found none of them"),
        (lambda folder: (folder / "notes.txt").write_text("hello"), "found none of them"),
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: [folder.rmdir(), folder.write_text("a file")], "is a file, not a folder"),
        (lambda folder: write_json(folder / "summary.json", {"schema_version": 1, "kind": "poem"}), "kind 'poem'"),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json line 1: not valid JSON"),
    ],
    ids=["empty", "other files", "missing", "file", "unknown kind", "damaged"],
)
def test_a_folder_without_results_is_one_clear_error(tmp_path, make, complaint):
    folder = tmp_path / "runs"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError, match=complaint):
        write_report([folder], output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_beside_a_good_one_is_an_error_too(diagnosed, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no result"):
        find_sources([diagnosed, tmp_path / "empty"], MARKS)


def test_pairs_of_another_diagnosis_are_refused(tmp_path):
    write_diagnosis(tmp_path, 20)
    (tmp_path / "pairs.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(StateError, match="Diagnose again"):
        write_report([tmp_path], output_dir=tmp_path / "out")


def test_results_without_a_section_are_named(diagnosed, tmp_path, without_plots):
    write_json(tmp_path / "poem" / "summary.json", {"schema_version": 1, "kind": "poem"})
    shutil.copytree(diagnosed, tmp_path / "diagnosis")
    report = write_report([tmp_path], output_dir=tmp_path / "out")
    assert report.not_shown == [(tmp_path / "poem" / "summary.json", "poem")]
    assert "summary.json of kind poem" in words_of(report.page.read_text())


def test_results_under_any_name_are_named_by_kind_and_other_files_are_left_alone(diagnosed, tmp_path, without_plots):
    shutil.copytree(diagnosed, tmp_path / "diagnosis")
    results = {"best_of_n.json": "best-of-n", "scores.summary.json": "scoring", "rm/expected_scores.json": "serving"}
    for name, kind in results.items():
        write_json(tmp_path / name, {"schema_version": 1, "kind": kind})
    write_json(tmp_path / "more" / "best_of_n.json", {"schema_version": 1, "kind": "best-of-n"})
    others = {"tokenizer.json": "{}", "half.json": '{"schema_version": 1, "kind"', "list.json": '["schema_version"]'}
    others["deployment.json"] = '{"schema_version": "v9", "kind": "Deployment"}'
    for name, text in others.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    report = write_report([tmp_path, tmp_path], output_dir=tmp_path / "out")
    assert sorted(kind for _, kind in report.not_shown) == ["best-of-n", "best-of-n", "scoring", "serving"]
    words = words_of(report.page.read_text())
    assert f"it: 2 files of kind best-of-n, such as {tmp_path / 'best_of_n.json'}." in words
    assert "scores.summary.json of kind scoring." in words
    with pytest.raises(DataError, match=r"rm: no result.*found only expected_scores.json of kind 'serving'"):
        find_sources([tmp_path, tmp_path / "rm"], MARKS)


# ---- which pairs and texts -------------------------------------------------------------------------------------------


def table_of(folder, max_rows, seed=0):
    section = diagnosis.build([Source(folder / "summary.json", "run")], Limits(max_rows=max_rows, seed=seed))
    return section.pairs[0]


def test_a_file_that_fits_is_shown_whole_and_in_order(diagnosed):
    table = table_of(diagnosed, 400)
    assert (table.rows, table.sampled, table.total) == (400, 400, 400)
    assert table.ids == [row["id"] for row in read_jsonl(diagnosed / "pairs.jsonl")]


def test_of_a_large_file_three_quarters_are_drawn_and_the_rest_are_telling(diagnosed):
    table = table_of(diagnosed, 40)
    assert (table.rows, table.sampled, table.total) == (40, 30, 400)
    assert len(set(table.ids)) == 40
    everything = list(read_jsonl(diagnosed / "pairs.jsonl"))
    assert [everything[line]["id"] for line in table.lines] == table.ids
    # The most telling pair of all is a quiet mistake: the one with the largest error.
    median = read_json(diagnosed / "summary.json")["quiet_mistakes"]["median_update_bt"]
    quiet = [row for row in everything if row["misranked"] and row["update_bt"] < median]
    assert max(quiet, key=lambda row: row["error"])["id"] in table.ids
    assert min(everything, key=lambda row: row["distance"])["id"] in table.ids


def test_the_sample_depends_on_seed_and_ids_alone(tmp_path, diagnosed):
    rows = list(read_jsonl(diagnosed / "pairs.jsonl"))
    columns = [Column("error", "Error", "number", "")]

    def drawn(name, rows, seed):
        write_jsonl(tmp_path / name, rows)
        settings = {"rankings": [lambda cells: cells["error"]], "ranking": "error", "max_rows": 100, "seed": seed}
        table = read_table(tmp_path / name, run="run", columns=columns, **settings)
        return set(table.ids[: table.sampled])

    first = drawn("a.jsonl", rows, 0)
    assert drawn("b.jsonl", [{**row, "error": 0.1} for row in reversed(rows)], 0) == first
    assert drawn("a.jsonl", rows, 1) != first


def test_quiet_mistakes_are_those_that_the_summary_counts(diagnosed):
    assert (
        table_of(diagnosed, 400).numbers("quiet").sum()
        == read_json(diagnosed / "summary.json")["quiet_mistakes"]["quiet_bt"]
    )


def test_texts_fill_the_page_in_the_order_of_telling(tmp_path):
    table = table_of(write_diagnosis(tmp_path, 300, words=40), 300)
    packed = pack_texts([table], max_bytes=40_000)
    assert 0 < packed.kept < packed.wanted == 300
    assert len(packed.compressed) <= 40_000
    has = packed.records[0] >= 0
    first = table.telling[: packed.kept]
    assert has[first].all()
    lines = gzip.decompress(packed.compressed).decode().splitlines()
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "pairs.jsonl")}
    for place in np.flatnonzero(has):
        row = rows[table.ids[place]]
        assert json.loads(lines[packed.records[0][place]]) == [row["prompt"], row["chosen"], row["rejected"]]


def test_runs_of_the_same_pairs_hold_their_texts_once(two_runs):
    tables = [table_of(two_runs / run / "diagnosis", 200) for run in ("bt", "normbt")]
    packed = pack_texts(tables, max_bytes=10**6)
    assert packed.kept == packed.wanted == 400
    assert len(gzip.decompress(packed.compressed).decode().splitlines()) == 200
    np.testing.assert_array_equal(*packed.records)


def test_a_very_long_text_is_cut_and_says_so(tmp_path):
    long = {"id": "long", "prompt": None, "chosen": "x" * (LONGEST_TEXT + 1_234), "rejected": "y"}
    write_jsonl(tmp_path / "pairs.jsonl", [long])
    table = read_table(tmp_path / "pairs.jsonl", run="r", columns=[], rankings=[], ranking="", max_rows=10, seed=0)
    packed = pack_texts([table], max_bytes=10**6)
    prompt, chosen, rejected = json.loads(gzip.decompress(packed.compressed))
    assert (prompt, rejected, packed.cut) == (None, "y", 1)
    assert chosen == "x" * LONGEST_TEXT + "\n[… 1,234 more characters are not in this report]"


def test_columns_hold_five_digits_nulls_and_names(tmp_path):
    columns = [Column("a", "A", "number", ""), Column("f", "F", "flag", ""), Column("c", "C", "choice", "")]
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"id": "1", "a": 1.23456789, "f": True, "c": "x"}, {"id": "2", "a": None, "f": False, "c": None}, {"id": "3"}],
    )
    table = read_table(tmp_path / "pairs.jsonl", run="r", columns=columns, rankings=[], ranking="", max_rows=9, seed=0)
    record = json.loads(gzip.decompress(pack_columns(table)))
    assert record["ids"] == ["1", "2", "3"]
    assert record["columns"] == {
        "a": [1.2346, None, None],
        "f": [1, 0, None],
        "c": {"names": ["x"], "of": [0, None, None]},
    }


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_pairs_stay_under_five_megabytes_and_the_page_says_what_it_holds(tmp_path, without_plots):
    write_diagnosis(tmp_path / "run", 10_000, words=120)
    report = write_report([tmp_path / "run"], output_dir=tmp_path / "out")
    assert report.page_bytes == report.page.stat().st_size < 5_000_000
    assert (report.pairs, report.pairs_total) == (10_000, 10_000)
    assert 1_000 < report.texts < 10_000
    seen = words_of(report.page.read_text())
    assert "All 10,000 pairs of the file." in seen
    assert f"The texts of {report.texts:,} of 10,000 fit the page: quiet mistakes" in seen


def test_a_sampled_page_says_so(diagnosed, tmp_path, without_plots):
    report = write_report([diagnosed], output_dir=tmp_path, max_pairs=40, seed=5)
    seen = words_of(report.page.read_text())
    assert "40 of 400 pairs: 30 drawn at random (seed 5), and 10 more because they are telling" in seen
    assert "Each dot is a pair (30 of 400, drawn at random)." in seen


def test_nothing_in_a_text_or_an_id_becomes_markup(diagnosed, tmp_path, without_plots):
    run = tmp_path / "<script>alert(1)<!--"  # its name is the run's label, in the words and in the data
    shutil.copytree(diagnosed, run)
    page = write_report([run], output_dir=tmp_path / "out", title="<b>&</b>").page.read_text()
    assert re.findall(r"<script\b[^>]*>", page) == [
        '<script type="application/json" id="report">',
        '<script type="text/plain" id="table-0">',
        '<script type="text/plain" id="texts">',
        "<script>",
    ]
    assert page.count("</script>") == 4
    assert "<!--" not in page
    assert json.loads(block(page, "report"))["tables"][0]["run"] == run.name
    assert "<title>&lt;b&gt;&amp;&lt;/b&gt;</title>" in page
    assert "\u2028" not in page
    assert json.loads(unpacked(page, "table-0"))["ids"][: len(NASTY)] == nasty_ids()
    prompts = [json.loads(line)[0] for line in unpacked(page, "texts").split("\n") if line]
    assert {row["prompt"] for row in NASTY} <= set(prompts)


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(diagnosed, tmp_path, without_plots):
    page = write_report([diagnosed], output_dir=tmp_path).page.read_text()

    def hash_of(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert style is not None
    assert script is not None
    assert policy is not None
    assert unescape(policy[1]) == (
        f"default-src 'none'; style-src {hash_of(style[1])}; script-src {hash_of(script[1])}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r'\b(src|href)="(?!#)', page)
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval|document\.write)\b", script[1])


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path, without_plots):
    write_diagnosis(tmp_path / "run", 20)
    path = tmp_path / "run" / "pairs.jsonl"
    lines = path.read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "id": "\ud83d", "category": "\ud83d", "chosen": "half \ud83d"})
    path.write_text("\n".join(lines) + "\n")
    summary = read_json(tmp_path / "run" / "summary.json")
    write_json(
        tmp_path / "run" / "summary.json",
        {**summary, "pairs_sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    )
    page = write_report([tmp_path / "run"], output_dir=tmp_path / "out").page.read_text()
    assert json.loads(unpacked(page, "table-0"))["ids"][0] == "?"


def test_the_headlines_are_numbers_of_the_summary(diagnosed, tmp_path, without_plots):
    summary = read_json(diagnosed / "summary.json")
    seen = words_of(write_report([diagnosed], output_dir=tmp_path).page.read_text())
    first, last = summary["share_by_decile"][0], summary["share_by_decile"][-1]
    quiet = summary["quiet_mistakes"]
    assert f"goes to the closest tenth {100 * first['share_bt']:.1f} % {100 * first['share_normbt']:.1f} % with" in seen
    assert f"{100 * last['share_bt']:.1f} % {100 * last['share_normbt']:.1f} % with NormBT weights" in seen
    assert f"r = {summary['correlations']['distance']['pearson']['value']:.3f}" in seen
    assert f"{quiet['quiet_bt']} of {quiet['misranked']} {quiet['quiet_normbt']} with NormBT weights" in seen
    assert "The closest category is reasoning" in seen


def test_every_run_and_section_is_there(two_runs, tmp_path, without_plots):
    report = write_report([two_runs], output_dir=tmp_path)
    assert report.sections == {"Who gets the gradient": 2, "How well the pairs are ranked": 2, "How training went": 2}
    page = report.page.read_text()
    frame = json.loads(block(page, "report"))
    assert [table["run"] for table in frame["tables"]] == ["bt", "normbt"]
    assert len(frame["charts"]) == page.count("data-chart=") == len(report.plots)
    assert "Where this comes from" in page


def test_evaluations_alone_are_explored_without_texts(tmp_path, without_plots):
    write_evaluation(tmp_path / "run")
    report = write_report([tmp_path / "run"], output_dir=tmp_path / "out")
    assert (report.pairs, report.texts) == (60, 0)
    page = report.page.read_text()
    assert "The result files hold no texts. A diagnosis does." in words_of(page)
    cells = json.loads(unpacked(page, "table-0"))["columns"]
    assert sum(cells["misranked"]) == sum(not row["correct"] for row in read_jsonl(tmp_path / "run" / "pairs.jsonl"))


# ---- the charts ------------------------------------------------------------------------------------------------------


def charts_of(folder):
    section = diagnosis.build([Source(folder / "summary.json", "run")], NO_LIMIT)
    return {chart.name: chart for chart in section.charts}


def test_the_shares_by_decile_are_those_of_the_summary(diagnosed):
    summary, bars = read_json(diagnosed / "summary.json"), charts_of(diagnosed)["share-by-decile"]
    ((_, (bt, normbt)),) = bars.panels
    assert [mark.value for mark in bt.marks] == [row["share_bt"] for row in summary["share_by_decile"]]
    assert [mark.value for mark in normbt.marks] == [row["share_normbt"] for row in summary["share_by_decile"]]


def test_the_bins_hold_their_pairs_and_a_line_of_their_slope(diagnosed):
    summary, scatter = read_json(diagnosed / "summary.json"), charts_of(diagnosed)["gradient-norm-at-equal-error"]
    assert [len(panel.rows()) for panel in scatter.panels] == [row["pairs"] for row in summary["error_bins"]]
    for panel, row in zip(scatter.panels, summary["error_bins"], strict=True):
        x, y = (panel.table.numbers(name)[panel.rows()] for name in ("distance", "gradient_norm"))
        (x1, x2), (y1, y2) = fit_line(x, y, panel.slope)
        assert np.log(y2 / y1) / np.log(x2 / x1) == pytest.approx(row["slope"]["value"])


def test_the_spread_of_a_category_is_its_quantiles(diagnosed):
    spans = charts_of(diagnosed)["distance-by-category"]
    rows = [row for row in read_jsonl(diagnosed / "pairs.jsonl") if row["category"] == "safety"]
    mark = spans.series[0].marks[spans.groups.index("safety")]
    expected = np.quantile([row["distance"] for row in rows], [0.05, 0.25, 0.5, 0.75, 0.95])
    assert [mark.low, mark.inner_low, mark.value, mark.inner_high, mark.high] == pytest.approx(expected.tolist())
    assert spans.groups[0] == "reasoning", "the closest category comes first"


def test_axes_are_logarithmic_where_the_values_span_powers_of_ten():
    assert scale_for([]) == scale_for([0.0, 0.0]) == scale_for([float("nan"), -1.0]) == "linear"
    assert scale_for(np.geomspace(0.01, 100, 50)) == "log"
    assert scale_for([*np.geomspace(0.01, 100, 50), 0.0]) == "linear", "a zero has no place on a logarithmic axis"


def test_a_curve_is_smoothed_only_where_there_are_many_logs():
    assert training._smooth([1.0, None, 3.0], 1) == [1.0, None, 3.0]
    assert training._smooth([0.0, 3.0, None, 6.0], 3) == [1.5, 1.5, 4.5, 6.0]
    assert training._smooth([2.0] * 50, 4) == [2.0] * 50
    assert (training._window(80), training._window(200)) == (1, 5)


def test_training_curves_have_gaps_where_a_number_is_not_finite(tmp_path):
    path = write_training(tmp_path / "run", steps=20) / "trainer_state.json"
    state = json.loads(path.read_text())
    state["log_history"][3]["loss_unweighted"] = float("nan")
    path.write_text(json.dumps(state))
    section = training.build([Source(path, "run")], NO_LIMIT)
    panels = {title: lines for title, _, lines in section.charts[0].panels}
    assert panels["Loss, not weighted"][0].y[3] is None
    accuracy = panels["Accuracy"]
    assert [line.name for line in accuracy] == ["run", "run: eval_accuracy"]
    assert accuracy[1].x == [10, 20]
    near = [line.name for line in panels["Accuracy, closest third"]]
    assert near == ["run", "run: eval_accuracy_near"]


@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        ("eval_accuracy", "accuracy", True),
        ("eval_hard_accuracy", "accuracy", True),
        ("eval_accuracy_near", "accuracy", False),
        ("eval_accuracy_near", "accuracy_near", True),
        ("eval_loss_weighted", "loss", False),
        ("accuracy", "accuracy", False),
        ("eval_runtime", "margin", False),
    ],
)
def test_evaluations_go_with_their_metric(name, metric, expected):
    assert training._is_evaluation(name, metric) is expected


@pytest.mark.slow
def test_every_chart_becomes_a_picture(two_runs, tmp_path):
    from matplotlib.image import imread

    report = write_report([two_runs], output_dir=tmp_path)
    assert len(report.plots) == len(set(report.plots)) == 9
    for picture in report.plots:
        height, width = imread(picture).shape[:2]
        assert 900 < width < 3000, picture.name
        assert 300 < height < 4000, picture.name


def test_a_picture_of_nothing_and_of_strange_names_is_still_drawn(diagnosed, tmp_path):
    table = table_of(diagnosed, 400)
    axis = Axis("$x_1$ % \\alpha", "log")
    panel = Panel("$a", table, where=("error", 2.0, 3.0), slope=1.0)
    chart = Scatter("a/b c", "50 % $ of <b>", "", axis, axis, "distance", "gradient_norm", [panel], colour="error")
    assert draw(chart, tmp_path).name == "a-b-c.png"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(two_runs, tmp_path, capsys, without_plots):
    assert cli.main(["report", str(two_runs), "--output-dir", str(tmp_path / "out"), "--title", "Mine"]) == 0
    printed = capsys.readouterr().out
    assert "Who gets the gradient: 2 results" in printed
    assert "Pairs to explore: 400 of 400; 400 with their texts" in printed
    assert str(tmp_path / "out" / "report.html") in printed
    assert "<title>Mine</title>" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_refuses_what_is_not_there(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_no_pairs_at_all_cannot_be_asked_for(diagnosed, tmp_path):
    with pytest.raises(ConfigError, match="max_pairs=0"):
        write_report([diagnosed], output_dir=tmp_path, max_pairs=0)
