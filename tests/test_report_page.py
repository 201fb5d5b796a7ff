"""The report's page in a real browser, opened from the disk: drawing, filtering, sorting, reading, and nothing else.

Needs Chromium and its driver on the PATH (Debian: `apt-get install chromium chromium-driver`); without them the tests
are skipped. The browser is headless, has a new profile, and the page's policy forbids it every connection.
"""

import json
import shutil
from difflib import SequenceMatcher
from urllib.parse import quote

import pytest

from diagnosed import NASTY, nasty_ids, write_diagnosis, write_evaluation, write_training
from normbt.report import write, write_report
from normbt.results import read_json, read_jsonl

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'normbt[dev]'")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="Chromium and chromedriver are not on the PATH (Debian: apt-get install chromium chromium-driver)",
)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Page:
    """A browser with the report in it."""

    def __init__(self, driver, path, folder):
        self.driver, self.path, self.folder = driver, path, folder

    def open(self, address="", *, width=1280, height=900, scheme="light"):
        mobile = width < 500
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )
        media = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get("about:blank")
        self.driver.get(self.path.as_uri() + address)
        self.until("document.documentElement.dataset.ready === 'yes'")
        self.run("document.querySelector('[data-set-theme=auto]').click()")
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def value(self, expression, *arguments):
        return self.run(f"return {expression}", *arguments)

    def until(self, expression):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: self.value(expression), expression)

    def find(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, selector, value):
        from selenium.webdriver.support.ui import Select

        Select(self.find(selector)).select_by_value(value)

    def status(self):
        return self.find(".status").text

    def ids(self):
        return self.value("[...document.querySelectorAll('table.pairs .open')].map((node) => node.textContent)")

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def reset(self):
        """All filters off, no dialog."""
        self.run("document.querySelector('#pair').close()")
        self.run("document.dispatchEvent(new CustomEvent('explore', {detail: {run: 0, stay: true}}))")
        self.until("document.querySelector('.status').textContent === '240 pairs'")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from selenium import webdriver

    runs = tmp_path_factory.mktemp("runs")
    for seed, run in enumerate(("bt", "normbt")):
        write_diagnosis(runs / run / "diagnosis", 240, seed=seed, nasty=True)
        write_evaluation(runs / run / "evaluation", shift=0.5 + seed)
        write_training(runs / run / "model", weighted=run == "normbt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "draw", lambda chart, folder: folder / f"{chart.name}.png")
        report = write_report([runs], output_dir=tmp_path_factory.mktemp("report"))
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield Page(driver, report.page, runs)
    driver.quit()


@pytest.fixture
def opened(page):
    """The page as it opens, and a look at the console when the test is over."""
    page.driver.get_log("browser")
    yield page.open()
    assert page.complaints() == []


@pytest.fixture(scope="module")
def rows(page):
    return list(read_jsonl(page.folder / "bt" / "diagnosis" / "pairs.jsonl"))


def test_the_page_draws_every_chart_and_asks_nobody_for_anything(opened):
    drawn = "[...document.querySelectorAll('[data-chart]')].map((node) => node.querySelectorAll('svg').length > 0)"
    assert opened.value(drawn) == [True] * 9
    assert opened.value("performance.getEntriesByType('resource').length") == 0
    assert opened.value("document.querySelectorAll('img, iframe, object, link').length") == 0
    painted = """[...document.querySelectorAll('.stack canvas')].map((canvas) =>
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0))"""
    assert opened.value(painted) == [True] * 12
    assert opened.status() == "240 pairs"


def test_a_connection_would_be_refused(page):
    page.open()
    page.run("fetch('https://example.org/').catch(() => {})")
    page.until("true")
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


def test_filters_count_what_the_file_holds(opened, rows):
    median = read_json(opened.folder / "bt" / "diagnosis" / "summary.json")["quiet_mistakes"]["median_update_bt"]
    safety = [row for row in rows if row["category"] == "safety"]
    wrong = [row for row in safety if row["misranked"]]

    opened.choose("#choice-category", "safety")
    assert opened.status() == f"{len(safety)} of 240 pairs"
    opened.run("document.querySelector('input[value=misranked]').click()")
    assert opened.status() == f"{len(wrong)} of 240 pairs"
    assert "Category: safety" in opened.find(".chips").text

    opened.reset()
    opened.run("document.querySelector('input[value=quiet]').click()")
    quiet = [row for row in rows if row["misranked"] and row["update_bt"] < median]
    assert opened.status() == f"{len(quiet)} of 240 pairs"

    opened.reset()
    opened.find("#distance-min").send_keys("1")
    opened.find("#distance-max").send_keys("3.5")
    opened.find("#error-min").send_keys("0.4")
    inside = [row for row in rows if 1 <= row["distance"] <= 3.5 and row["error"] >= 0.4]
    opened.until(f"document.querySelector('.status').textContent === '{len(inside)} of 240 pairs'")
    assert 0 < len(inside) < 240


def test_search_reads_prompts_answers_and_ids(opened, rows):
    def found(words):
        opened.run("document.querySelector('#search').value = ''")
        opened.find("#search").send_keys(words)
        texts = [[row["id"], row["prompt"], row["chosen"], row["rejected"]] for row in rows]
        expected = sum(any(words.lower() in (text or "").lower() for text in row) for row in texts)
        shown = "240" if expected == 240 else f"{expected} of 240"
        wanted = f"{shown} pairs" if expected else "No pair fits these filters. Remove one above."
        opened.until(f"document.querySelector('.status').textContent === {json.dumps(wanted)}")
        return expected

    assert 0 < found("python") < 240
    assert found("PAIR-17") > 0
    assert found("باريس") == 1
    assert found("no such words anywhere") == 0


def test_sorting_by_a_column_turns_around_and_ends(opened, rows):
    by_distance = [row["id"] for row in sorted(rows, key=lambda row: -row["distance"])]
    button = "document.querySelector('[data-sort=distance]')"
    opened.run(f"{button}.click()")
    assert opened.ids() == by_distance[:50]
    assert opened.value(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"
    opened.run(f"{button}.click()")
    assert opened.ids() == by_distance[::-1][:50]
    opened.run(f"{button}.click()")
    assert opened.ids() == [row["id"] for row in rows[:50]]


def test_every_column_can_be_shown_and_sorted_by(opened):
    names = opened.value("[...document.querySelectorAll('.columns input')].map((node) => node.value)")
    assert len(names) == 23
    opened.run("document.querySelectorAll('.columns input:not(:checked)').forEach((node) => node.click())")
    for name in names:
        opened.run(f"document.querySelector('[data-sort={name}]').click()")
        assert len(opened.ids()) == 50
    assert opened.value("document.querySelectorAll('table.pairs thead th').length") == 24


def test_pages_go_through_all_rows(opened, rows):
    seen = opened.ids()
    while opened.value("!document.querySelector('#page-next').disabled"):
        opened.run("document.querySelector('#page-next').click()")
        seen += opened.ids()
    assert seen == [row["id"] for row in rows]
    assert "201–240 of 240" in opened.find(".pager").text


def test_a_pair_opens_with_its_texts_its_numbers_and_its_address(opened, rows):
    opened.run("document.querySelectorAll('.open')[9].click()")
    opened.until("document.querySelector('.answers')")
    row = rows[9]
    assert opened.value("document.querySelector('#pair-title').textContent") == row["id"]
    assert opened.value("document.querySelector('.prompt .text').textContent") == row["prompt"]
    assert opened.value("document.querySelector('.answer.chosen .text').textContent") == row["chosen"]
    assert opened.value("document.querySelector('.answer.rejected .text').textContent") == row["rejected"]
    shown = opened.value(
        """Object.fromEntries([...document.querySelectorAll('.pair-numbers tbody tr')].map((line) =>
            [line.querySelector('th').textContent, line.querySelector('td span').textContent]))"""
    )
    for label, field in (("Distance", "distance"), ("Gradient norm", "gradient_norm"), ("Error", "error")):
        assert float(shown[label]) == pytest.approx(row[field], rel=6e-4)  # four digits of five
    heads = "[...document.querySelectorAll('.pair-numbers table:first-child thead th')].map((node) => node.textContent)"
    assert opened.value(heads) == ["bt", "normbt"]
    assert opened.driver.current_url.endswith("#run=bt&pair=pair-9")


def test_the_word_diff_marks_what_one_answer_has_alone(opened, rows):
    place = next(i for i, row in enumerate(rows) if row["category"] == "reasoning" and i >= len(NASTY))
    opened.open(f"#pair=pair-{place}")
    opened.until("document.querySelector('.answers')")
    marks = [
        opened.value(f"[...document.querySelectorAll('mark.only-{side}')].map((node) => node.textContent).join('|')")
        for side in ("chosen", "rejected")
    ]
    chosen, rejected = rows[place]["chosen"].split(), rows[place]["rejected"].split()
    matched = SequenceMatcher(None, chosen, rejected, autojunk=False).get_opcodes()
    changed = [word for kind, start, end, *_ in matched if kind in ("replace", "delete") for word in chosen[start:end]]
    assert any(marks)
    assert all(part in " ".join(changed) for part in marks[0].split("|"))
    opened.run("document.querySelector('#show-diff').click()")
    assert opened.value("document.querySelectorAll('mark').length") == 0
    assert opened.value("document.querySelector('.answer.chosen .text').textContent") == rows[place]["chosen"]


@pytest.mark.parametrize(
    ("left", "right", "only_left", "only_right"),
    [
        ("same words", "same words", "", ""),
        ("", "", "", ""),
        ("", "all new", "", "all new"),
        ("x < 37", "x > 37", "<", ">"),
        ("one two three four", "one 2 3 four", "two three", "2 3"),
        ("日本語です", "日本人です", "語", "人"),
        ("naïve e\u0301tude", "naïve etude", "e\u0301tude", "etude"),
        ("a\nb\nc", "a\nc", "b\n", ""),
    ],
)
def test_the_diff_of_small_texts(page, left, right, only_left, only_right):
    found = page.value("globalThis.normbtReport.diffWords(arguments[0], arguments[1])", left, right)
    for text, runs, alone in ((left, found["left"], only_left), (right, found["right"], only_right)):
        assert "".join(run["text"] for run in runs) == text
        assert "".join(run["text"] for run in runs if not run["same"]) == alone


def test_the_diff_is_whole_and_shortest_on_random_words(page):
    """Against the longest common subsequence by dynamic programming, the slow twin."""
    outcome = page.run(
        """
        let seed = 7;
        const random = (n) => (seed = (seed * 1103515245 + 12345) % 2147483648) % n;
        const words = (n) => Array.from({ length: n }, () => 'abcd'[random(4)]);
        const wrong = [];
        for (let trial = 0; trial < 300; trial++) {
          const [a, b] = [words(random(14)), words(random(14))];
          const table = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
          for (let i = 1; i <= a.length; i++)
            for (let j = 1; j <= b.length; j++)
              table[i][j] = a[i - 1] === b[j - 1]
                ? table[i - 1][j - 1] + 1
                : Math.max(table[i - 1][j], table[i][j - 1]);
          const { left, right } = normbtReport.diffWords(a.join(' '), b.join(' '));
          const whole = (runs) => runs.map((run) => run.text).join('');
          const kept = (runs) => runs.filter((run) => run.same).map((run) => run.text).join('');
          const letters = kept(left).replaceAll(' ', '').length;
          if (whole(left) !== a.join(' ') || whole(right) !== b.join(' '))
            wrong.push(['lost', a.join(''), b.join('')]);
          if (letters !== table[a.length][b.length])
            wrong.push(['length', a.join(''), b.join(''), letters, table[a.length][b.length]]);
        }
        return wrong;
        """
    )
    assert outcome == []


def test_texts_that_have_nothing_in_common_are_marked_whole(page):
    left, right = " ".join(f"a{i}" for i in range(4000)), " ".join(f"b{i}" for i in range(4000))
    found = page.value("normbtReport.diffWords(arguments[0], arguments[1])", left, right)
    assert found["whole"] is True
    assert "".join(run["text"] for run in found["left"]) == left
    assert [run["same"] for run in found["left"]] == [False]


@pytest.mark.parametrize("place", range(len(NASTY)), ids=[row["id"][:10] for row in NASTY])
def test_text_stays_text(opened, place):
    row = NASTY[place]
    opened.open(f"#pair={quote(row['id'])}")
    opened.until("document.querySelector('.answers')")
    assert opened.value("document.querySelector('#pair-title').textContent") == row["id"]
    assert opened.value("document.querySelector('.prompt .text').textContent") == row["prompt"]
    assert opened.value("document.querySelector('.answer.chosen .text').textContent") == row["chosen"]
    assert opened.value("document.querySelectorAll('#pair img, #pair script, #pair b, #pair i').length") == 0
    if row["id"] == "rtl":
        direction = "getComputedStyle(document.querySelector('.prompt .text')).direction"
        assert opened.value(direction) == "rtl"


def test_all_nasty_ids_are_in_the_table(opened):
    assert opened.ids()[: len(NASTY)] == nasty_ids()


def test_the_keyboard_is_enough(opened, rows):
    from selenium.webdriver.common.keys import Keys

    opened.press("/")
    assert opened.value("document.activeElement.id") == "search"
    opened.run("document.querySelectorAll('.open')[3].focus()")
    opened.press(Keys.ENTER)
    opened.until("document.querySelector('#pair').open")
    opened.press(Keys.ARROW_RIGHT)
    opened.until(f"document.querySelector('#pair-title').textContent === {json.dumps(rows[4]['id'])}")
    opened.press(Keys.ARROW_LEFT)
    opened.until(f"document.querySelector('#pair-title').textContent === {json.dumps(rows[3]['id'])}")
    opened.press(Keys.ESCAPE)
    opened.until("!document.querySelector('#pair').open")
    assert opened.value("document.activeElement.textContent") == rows[3]["id"]
    assert "#" not in opened.driver.current_url.rstrip("#")

    opened.run("document.querySelector('#chart-share-by-decile .clickable').focus()")
    opened.press(Keys.ENTER)
    opened.until("document.querySelector('.status').textContent === '24 of 240 pairs'")


def test_an_address_opens_its_pair_in_its_run(opened):
    opened.open("#run=normbt&pair=pair-200")
    opened.until("document.querySelector('#pair').open")
    assert opened.value("document.querySelector('#pair-title').textContent") == "pair-200"
    assert opened.value("document.querySelector('#run').selectedOptions[0].textContent") == "normbt"
    opened.open("#pair=gone")
    opened.until("document.querySelector('.status').textContent.includes('The pair gone is not among those')")


def test_charts_lead_to_their_pairs(opened, rows):
    closest = "document.querySelector('#chart-distance-by-category .clickable')"
    opened.run(f"{closest}.dispatchEvent(new Event('click'))")
    reasoning = sum(row["category"] == "reasoning" for row in rows)
    opened.until(f"document.querySelector('.status').textContent === '{reasoning} of 240 pairs'")
    opened.reset()
    stack = opened.find("#chart-gradient-norm-by-distance .stack")
    opened.run("arguments[0].scrollIntoView({block: 'center'})", stack)
    from selenium.webdriver.common.action_chains import ActionChains

    width, height = stack.size["width"], stack.size["height"]
    mouse = ActionChains(opened.driver).move_to_element_with_offset(stack, -width // 2 + 60, -height // 2 + 30)
    mouse.click_and_hold().move_by_offset(width - 80, height - 90).release().perform()
    opened.until("document.querySelectorAll('.chip').length >= 2")
    assert "Distance ≥" in opened.find(".chips").text
    assert "Gradient norm ≥" in opened.find(".chips").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_switch(opened, scheme):
    background = "getComputedStyle(document.documentElement).backgroundColor"
    dark, light = "rgb(18, 19, 22)", "rgb(250, 250, 248)"
    opened.open(scheme=scheme)
    assert opened.value(background) == (dark if scheme == "dark" else light)
    other = "light" if scheme == "dark" else "dark"
    opened.run(f"document.querySelector('[data-set-theme={other}]').click()")
    assert opened.value(background) == (dark if other == "dark" else light)
    assert opened.value(f"document.querySelector('[data-set-theme={other}]').getAttribute('aria-pressed')") == "true"
    opened.run("document.querySelector('[data-set-theme=auto]').click()")
    assert opened.value(background) == (dark if scheme == "dark" else light)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_on_their_background(opened, scheme):
    """WCAG's contrast of at least 4.5 for text, of every colour that text has on the surfaces it stands on."""
    opened.open(scheme=scheme)
    ratios = opened.run(
        """
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
          const hex = style.getPropertyValue(`--${name}`).trim();
          const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
          const [r, g, b] = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pairs = [];
        for (const text of ['ink', 'quiet', 'accent', 'chosen', 'rejected'])
          for (const back of ['paper', 'surface', 'sunken']) pairs.push([text, back]);
        pairs.push(['ink', 'chosen-soft'], ['ink', 'rejected-soft'], ['accent', 'accent-soft']);
        return pairs.map(([text, back]) => {
          const [a, b] = [light(text), light(back)].sort((p, q) => q - p);
          return [text, back, (a + 0.05) / (b + 0.05)];
        });
        """
    )
    assert [ratio for ratio in ratios if ratio[2] < 4.5] == []


def test_a_phone_needs_no_sideways_scrolling(opened):
    opened.open(width=375, height=800)
    assert opened.value("document.documentElement.scrollWidth") <= 375
    wide = """[...document.querySelectorAll('main *')].filter((node) => !node.closest('.scroll, svg, .visually-hidden')
        && node.getBoundingClientRect().right > 376).map((node) => node.className)"""
    assert opened.value(wide) == []
    opened.run("document.querySelectorAll('.open')[6].click()")
    opened.until("document.querySelector('.answers')")
    assert opened.value("document.querySelector('#pair').scrollWidth") <= 375
    assert opened.value("document.documentElement.scrollWidth") <= 375


def test_print_shows_the_charts_on_white(opened):
    opened.open(scheme="dark")
    opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert opened.value("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert opened.value("getComputedStyle(document.querySelector('.filters')).display") == "none"
        assert opened.value("document.querySelector('[data-chart] svg').getBoundingClientRect().width > 100")
    finally:
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
