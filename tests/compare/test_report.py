"""What may be compared, what is said, and the files that say it."""

import base64
import csv
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from compare import figures, results, slices, stats
from compare.columns import columns
from compare.comparison import compare
from compare.notes import HANDS_OFF
from compare.report import report
from compare.text import binary, si


def table(records):
    (only,) = compare(records).tables
    return only


def runs(record, **labels):
    return [record(label, seed, score) for label, scores in labels.items() for seed, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"train": "11", "validation": "22", "test": "44"}}, "data.test is 33 in softmax seed 0.*44 in gla"),
        (
            {"protocol": {"trainer": {"max_steps": 9}, "threads": 1}},
            "protocol.trainer.max_steps is 1000.*9 in gla seed 0",
        ),
        (
            {"protocol": {"trainer": {"max_steps": 1000}}},
            "protocol.threads is 1 in softmax seed 0, absent in gla seed 0",
        ),
        ({"engine": "fla"}, "engine is torch in softmax seed 0, fla in gla seed 0"),
        ({"metric": {"name": "loss", "higher_is_better": False}}, "metric.name is accuracy"),
    ],
)
def test_unequal_runs_are_refused_by_field(record, change, words):
    with pytest.raises(ValueError, match=words):
        compare([record("softmax", 0), record("gla", 0, **change)])
    compare([record("softmax", 0), record("gla", 0, task="copying", **change)])  # another task is another matter


def test_a_seed_that_comes_twice_is_refused(record):
    twice = [record("softmax", 0, path="a/result.json"), record("softmax", 0, path="b/result.json")]
    with pytest.raises(ValueError, match="softmax seed 0 comes twice, in a/result.json and b/result.json"):
        compare(twice)


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="no records"):
        compare([])


def test_differing_code_is_a_warning(record):
    assert compare([record("softmax", 0), record("gla", 0)]).warnings == []
    (warning,) = compare([record("softmax", 0), record("gla", 0, code="def")]).warnings
    assert "code version (abc in softmax seed 0; def in gla seed 0)" in warning


def test_code_that_was_never_committed_is_a_warning(record):
    dirty = {"code": "abc-dirty-1", "environment": record("gla", 0)["environment"] | {"dirty": True}}
    (warning,) = compare([record("softmax", 0, **dirty), record("gla", 0, **dirty)]).warnings
    assert "never committed was run (abc-dirty-1)" in warning


def test_a_long_label_leaves_room_for_the_axes(record):
    long = "gla," + "task.data.test=[{length:16}]" * 3
    assert figures.draw(table([record(long, 0), record(f"{long},aa", 0, aa=long)]))  # a warning is an error here


def test_a_run_that_never_had_data_does_not_differ(record, stopped):
    got = table([record("softmax", 0), stopped("fnet", 0, "impossible", "looks ahead: it does")])
    assert [row.outcome for row in got.rows] == ["finished", "impossible"]
    cells = [column.cell(got.rows[1]).text for column in columns(got)]
    assert "impossible: looks ahead" in cells
    assert "fnet seed 0: impossible: looks ahead: it does" in got.notes


def test_a_slice_that_was_not_run_leaves_no_mean(record):
    partly = record("linformer", 0)
    partly["test"]["score"] = None
    partly["slices"][-1] |= {"score": None, "reason": "not run: length 512 is above max_length=256"}
    got = table([record("softmax", 0), partly])
    assert "not run in part: see the notes" in [column.cell(got.rows[1]).text for column in columns(got)]
    assert "linformer seed 0, 32 pairs: not run: length 512 is above max_length=256" in got.notes


def test_slices_are_means_over_seeds(record):
    other = record("gla", 1, 0.2)
    other["slices"][0] |= {"score": None, "reason": "not run: too long"}
    got = slices.means(table([record("softmax", 0, 0.8), record("softmax", 1, 0.4), other]))
    assert got[0] == ["slice", "softmax", "gla"]
    assert got[1] == ["4 pairs", f"{0.6 * 8 / 11:.3f}", "not run"]
    assert got[4] == ["32 pairs", f"{0.6 * 8 / 39:.3f}", f"{0.2 * 8 / 39:.3f}"]


def test_differences_pair_equal_seeds(record):
    records = runs(record, gla=[0.5, 0.6, 0.8], softmax=[0.4, 0.5, 0.5]) + [record("gla", 7, 0.0)]
    got = table(records)
    assert got.baseline == got.rows[0].label == "softmax"
    paired = got.rows[1].difference
    assert (paired.n, paired.mean) == (3, pytest.approx(0.5 / 3))


def test_holm_is_over_the_labels(record):
    noise = [0.0, 0.01, -0.01, 0.02]
    labels = {"softmax": [0.5] * 4, "a": [0.6 + n for n in noise], "b": [0.52 + n for n in noise]}
    got = table(runs(record, **labels))
    a, b = got.rows[1:]
    assert a.p == pytest.approx(2 * a.difference.p)
    assert b.p == pytest.approx(b.difference.p)


def test_the_baseline_is_softmax_or_the_first_that_scored(record, stopped):
    assert table([record("b", 0), record("a", 0)]).baseline == "b"
    assert table([stopped("softmax", 0, "diverged", "nan"), record("a", 0)]).baseline == "a"
    assert table([stopped("softmax", 0, "diverged", "nan")]).baseline is None


NOISE = [0.0, 0.004, -0.004, 0.002]


def test_a_winner_is_named_only_where_the_test_says_so(record):
    clear = runs(record, softmax=[0.5 + n for n in NOISE], gla=[0.9 - n for n in NOISE])
    assert table(clear).verdict.startswith("gla wins: better than every other (p < 0.001)")
    third = clear + [record("delta", seed, score) for seed, score in enumerate([0.89, 0.91, 0.88, 0.9])]
    assert re.search(
        r"No winner: gla leads delta by 0\.0\d\d, which 4 seeds do not resolve .* about \d+", table(third).verdict
    )


def test_a_lower_loss_wins(record):
    metric = {"name": "loss", "higher_is_better": False}
    clear = runs(record, softmax=[0.5 + n for n in NOISE], gla=[0.9 - n for n in NOISE])
    assert table([run | {"metric": metric} for run in clear]).verdict.startswith("softmax wins")


def test_two_seeds_name_no_winner(record):
    got = table(runs(record, softmax=[0.1, 0.1], gla=[0.9, 0.9]))
    assert got.verdict == "No winner: gla and softmax share 2 seeds, and below 3 nothing is inferred."
    assert got.rows[1].p is None
    assert not any("p (Holm)" in column.head for column in columns(got))
    assert "below 3 seeds there are no intervals and no tests" in got.notes


def test_a_perfect_record_without_spread_is_not_proof(record):
    assert table(runs(record, softmax=[0.0] * 3, gla=[1.0] * 3)).verdict.startswith(
        "No winner: gla leads softmax by 1.000"
    )
    assert "are level" in table(runs(record, softmax=[1.0] * 3, gla=[1.0] * 3)).verdict


def test_a_leader_with_a_lost_run_does_not_win(record, stopped):
    clear = runs(record, softmax=[0.5 + n for n in NOISE], gla=[0.9 - n for n in NOISE])
    got = table([*clear, stopped("gla", 9, "diverged", "nan")])
    assert got.verdict == "No winner: gla leads, but 1 of 5 diverged."
    assert "gla: 1 of 5 diverged; its mean is over the rest only" in got.notes


def test_what_learns_nothing_is_said(record):
    got = table(runs(record, softmax=[0.9], gla=[0.15]))
    assert "no better than majority (0.200), which learns nothing: gla" in got.notes


def test_examples_that_are_in_two_splits_are_said(record):
    got = table([record("gla", seed, overlap={"validation": 0.5, "test": 0.0125}) for seed in range(2)])
    assert "1.25% of the test examples occur in training or validation too" in got.notes
    assert not any("occur in training" in note for note in table([record("gla", 0)]).notes)


def test_a_slice_that_did_not_run_is_said(record):
    run = record("gla", 0)
    run["slices"][1] |= {"reason": "not run: too long", "score": None}
    assert "gla seed 0, 8 pairs: not run: too long" in table([run]).notes


def test_solved_is_a_count_with_an_interval(record):
    assert table(runs(record, softmax=[0.95, 0.85, 0.9])).rows[0].solved == (
        2,
        3,
        pytest.approx(0.0943, abs=1e-4),
        pytest.approx(0.9916, abs=1e-4),
    )


def test_a_diverged_run_counts_as_not_solved(record, stopped):
    got = table([*runs(record, softmax=[0.95, 0.92]), stopped("softmax", 2, "diverged", "nan")])
    assert got.rows[0].solved[:2] == (2, 3) and got.rows[0].steps[-1] == float("inf")
    assert cell(got, "softmax", "solved").text.startswith("2/3 [")
    lost = table([record("softmax", 0), *(stopped("gla", seed, "diverged", "nan") for seed in range(3))]).rows[1]
    assert lost.solved[:2] == (0, 3) and lost.mean is None


def test_a_threshold_of_a_loss_is_reached_from_above(record):
    metric = {"name": "loss", "higher_is_better": False, "solved": 0.5}
    curve = [{"step": 1, "validation/score": 0.7}, {"step": 2, "validation/score": 0.4}]
    ends = {"curve": curve, "slices": sliced((64, 4, 0.2), (64, 8, 0.8)), "metric": metric}
    got = table([record("softmax", seed, score, **ends) for seed, score in enumerate([0.5, 0.9])])
    assert got.rows[0].solved[:2] == (1, 2) and got.rows[0].steps == [2, 2]
    assert 4 < cell(got, "softmax", "pairs at 50 %").raw[0] < 8
    assert any(note.startswith("solved: loss of at most 0.5") for note in got.notes)
    assert any(note.startswith("no better than chance (0.125)") for note in got.notes)  # the least of the references


def test_steps_are_of_the_runs_that_have_a_score(record, stopped):
    cut = stopped("softmax", 1, "interrupted", "SIGINT") | {"curve": [{"step": 7, "validation/score": 1.0}]}
    row = table([record("softmax", 0, 0.95), cut]).rows[0]
    assert len(row.steps) == 1 and row.steps[0] > 7 and row.solved[:2] == (1, 1)


def test_seeds_to_tell_are_said_where_so_many_do_not(record):
    clear, open_ = table(runs(record, softmax=[0.5] * 4, a=[0.6, 0.61, 0.6, 0.6], b=[0.45, 0.6, 0.5, 0.6])).rows[1:]
    assert clear.p < 0.05 <= open_.p and clear.seeds_needed is None and open_.seeds_needed > 4


def test_a_cost_is_that_of_the_longest_length_and_the_dearest_seed(record):
    costs = [{"64": 1, "256": 2, "1024": 3}, {"64": 1, "256": 2, "1024": 4}]
    row = table([record("gla", seed, state_bytes=cost) for seed, cost in enumerate(costs)]).rows[0]
    assert row.cost("state_bytes") == 4


def test_a_twin_is_in_no_note_but_its_own(record):
    lr = {"optimizer.lr": 0.1}
    chosen = {"grid": {"optimizer.lr": [0.1, 1]}, "seeds": [7], "chosen": lr, "edge": [*lr]}
    chosen["trials"] = [{"values": lr, "scores": [0.1]}]
    match = {"by": "params", "to": "gla", "length": 8, "target": 9, "reached": 9, "residual": 0, "met": True}
    match |= {"moved": {}, "sizes": []}
    planned = {"selection": chosen, "match": match}
    got = compare([record("softmax", 0, 0.1, **planned), record("softmax,aa", 0, 0.1, aa="softmax", **planned)])
    assert got.warnings == ["recall: softmax chose optimizer.lr=0.1, on the edge of its grid: widen it"]
    assert not any("softmax,aa" in note for note in got.tables[0].notes)


def test_runs_are_by_seed_and_many_are_not_all_named(record):
    records = [record("gla", seed) for seed in (10, 2, 3)]
    assert [run["seed"] for run in table(records).rows[0].runs] == [2, 3, 10]
    with pytest.raises(ValueError, match="torch in gla seed 10, gla seed 2 and 1 more, fla in a seed 0"):
        compare([*records, record("a", 0, engine="fla")])


def test_a_twin_is_held_against_the_one_it_repeats(record):
    runs_ = runs(record, softmax=[0.5] * 3, gla=[0.7] * 3)
    twins = [record("gla,aa", seed, 0.72, mixer="gla", aa="gla") for seed in range(3)]
    got = table(twins + runs_)
    assert got.baseline == "softmax"
    differences = {row.label: row.difference and row.difference.mean for row in got.rows}
    assert differences == {"softmax": None, "gla": pytest.approx(0.2), "gla,aa": pytest.approx(0.02)}
    assert table([record("softmax,aa", 0, aa="softmax"), record("softmax", 0)]).baseline == "softmax"


def test_a_verdict_counts_all_pairs(record):
    scores = {"softmax": [0.5, 0.51, 0.49, 0.5], "gla": [0.9, 0.92, 0.88, 0.91], "delta": [0.89, 0.91, 0.88, 0.9]}
    got = table(runs(record, **scores))
    gap = [a - b for a, b in zip(scores["gla"], scores["delta"], strict=True)]
    needed = stats.seeds_needed(gap, alpha=0.05 / 3)
    assert needed > stats.seeds_needed(gap)
    p = stats.paired(gap).p  # the largest of three, which Holm leaves as it is
    assert f"(p = {p:.3f}, Holm); about {needed} would" in got.verdict
    gap = [0.1, 0.2, 0.3, 0.1]  # to both others: enough for one test, and not for three
    level = {"gla": [0.5 + d for d in gap], "softmax": [0.5] * 4, "delta": [0.501, 0.5, 0.499, 0.5]}
    assert stats.paired(gap).p < 0.05 and table(runs(record, **level)).verdict.startswith("No winner: gla leads")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"torch": "2.14"},
            "torch (2.13 in softmax seed 0; 2.14 in gla seed 0): differences may come",
        ),
        (
            {"cpu": "AVX512"},
            "machine (linux AVX2 in softmax seed 0; linux AVX512 in gla seed 0): times cannot",
        ),
    ],
)
def test_another_machine_or_version_is_a_warning(record, change, words):
    environment = record("gla", 0)["environment"] | change
    (warning,) = compare([record("softmax", 0), record("gla", 0, environment=environment)]).warnings
    assert words in warning


def test_without_scipy_there_is_no_comparison(record, monkeypatch):
    monkeypatch.setattr("compare.comparison.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install seqmix[report]")):
        compare([record("softmax", 0)])


def test_the_same_columns_everywhere(sweep, tmp_path):
    console = Console(width=300, record=True, file=open("/dev/null", "w"))
    with console.file:
        report(sweep(), tmp_path, console)
    terminal = console.export_text()
    markdown = (tmp_path / "comparison.md").read_text()
    page = html.unescape((tmp_path / "report.html").read_text())
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    for column in columns(table(sweep())):
        assert column.head in terminal and column.head in markdown and column.head in page
        assert set(column.names) <= rows[0].keys()
    assert [row["mixer"] for row in rows][-2:] == ["chance", "majority"]
    softmax = next(row for row in rows if row["mixer"] == "softmax")
    assert float(softmax["mean"]) == pytest.approx(sum(float(s.split("=")[1]) for s in softmax["scores"].split()) / 3)
    for text in (terminal, markdown, page):
        assert "impossible: looks ahead" in text
        assert "chance" in text and "0.125" in text
        assert HANDS_OFF in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_cuts_nothing_off(sweep, tmp_path, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    with console.file:
        report(sweep(), tmp_path, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for column in columns(table(sweep())):
        assert column.head in text


def test_brackets_in_a_label_are_not_markup(record, tmp_path):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    with console.file:
        report([record("gla,pattern=[red]", 0), record("<b>|x", 0)], tmp_path, console)
    assert "gla,pattern=[red]" in console.export_text()
    assert "<b>" not in (tmp_path / "report.html").read_text()
    assert "<b>\\|x" in (tmp_path / "comparison.md").read_text()


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.open, self.svgs = [], [], 0

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("href", "src", "xlink:href") if key in values]
        self.svgs += tag == "svg"
        assert tag not in ("link", "iframe", "img")


def test_the_page_needs_nothing_else_and_repeats(sweep, tmp_path):
    pages = []
    for place in ("a", "b"):
        report(sweep(), tmp_path / place, Console(quiet=True))
        pages.append((tmp_path / place / "report.html").read_text())
    assert pages[0] == pages[1]
    page = Page()
    page.feed(pages[0])
    assert page.svgs == 7  # by pairs, by steps, by time, against state and FLOPs, time and memory against length
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"@import|url\((?!#)|fetch\(", pages[0])
    ids = re.findall(r' id="(m[0-9a-f]{10}|p[0-9a-f]{10})"', pages[0])
    assert len(ids) == len(set(ids)) > 0
    data = [base64.b64decode(link.split(",")[1]).decode() for link in page.links if link.startswith("data:text/csv")]
    assert data[0].startswith("mixer,pairs,mean,low,high,seeds\nsoftmax,4,")
    assert len(data) == 7
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["comparison.csv", "comparison.md", "report.html"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLICKS = """<script>
const body = document.querySelector("tbody"), names = () => [...body.rows].map(row => row.cells[0].textContent);
const button = [...document.querySelectorAll("th button")].find(b => b.textContent.startsWith("mean"));
button.click(); const up = names(); button.click();
document.title = JSON.stringify({up, down: names(), drawn: [...document.querySelectorAll("figure svg")].map(
  svg => Math.round(svg.getBoundingClientRect().width)), links: document.querySelectorAll("a[download]").length,
  requests: performance.getEntriesByType("resource").map(entry => entry.name)});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")
def test_a_browser_sorts_and_draws_the_page_and_asks_for_nothing(sweep, tmp_path):
    report(sweep(), tmp_path, Console(quiet=True))
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "clicked.html").write_text(page.replace("</body>", f"{CLICKS}</body>"))
    words = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split()
    words += [f"--user-data-dir={tmp_path}/profile", "--window-size=1300,2600", f"file://{tmp_path}/clicked.html"]
    seen = subprocess.run([CHROMIUM, *words, "--dump-dom"], capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", seen)[1]))
    by_mean = ["linear_attention", "mamba2", "gated_delta_net", "softmax"]  # what has no mean and what is no run: last
    assert found["up"] == [*by_mean, "fnet", "chance", "majority"]
    assert found["down"] == [*by_mean[::-1], "fnet", "majority", "chance"]
    assert len(found["drawn"]) == found["links"] == 7 and min(found["drawn"]) > 300
    assert found["requests"] == []
    subprocess.run([CHROMIUM, *words[:-1], f"--screenshot={tmp_path}/page.png", f"file://{tmp_path}/report.html"],
                   capture_output=True, timeout=120, check=True)  # fmt: skip
    assert (tmp_path / "page.png").stat().st_size > 50_000


def sliced(*scores):
    """Slices of (length, pairs, score)."""
    return [
        {"name": f"{n} at {T}", "values": {"length": T, "pairs": n}, "reason": "", "score": score, "n": 100}
        for T, n, score in scores
    ]


def cell(got, label, head):
    (row,) = [row for row in got.rows if row.label == label]
    (column,) = [column for column in columns(got) if column.head == head]
    return column.cell(row)


def test_capacity_and_extrapolation_of_known_curves(record):
    state = {"state_bytes": {"64": 4096, "128": 8192, "256": 16384}}
    noise = (0.01, 0.0, -0.01)
    known = [
        record("gla", seed, slices=sliced((64, 4, 1.0), (64, 8, 0.95), (128, 16, 0.85 + d), (256, 8, 0.2)), **state)
        for seed, d in enumerate(noise)
    ]
    all_solved = [record("softmax", seed, slices=sliced((128, 8, 0.95), (64, 4, 1.0)), **state) for seed in range(3)]
    none = [record("s4d", seed, slices=sliced((64, 4, 0.1), (128, 8, 0.05)), **state) for seed in range(3)]
    got = table(known + all_solved + none)
    pairs = cell(got, "gla", "pairs at 90 %").raw
    expected = [8 * 2 ** (0.05 / (0.1 - d)) for d in noise]
    assert pairs[0] == pytest.approx(sum(expected) / 3) and pairs[1] < pairs[0] < pairs[2]
    per_kib = cell(got, "gla", "pairs per KiB of state").raw
    assert per_kib == pytest.approx([value / 4 for value in pairs])  # the state after 64 tokens, where 8 pairs lie
    longest = cell(got, "gla", "longest at 90 %").raw  # at the fewest pairs of each length: 64 is solved, 128 is not
    assert 64 < longest[0] < 128
    assert cell(got, "softmax", "pairs at 90 %").text == ">= 8"
    assert cell(got, "softmax", "pairs per KiB of state").raw == (None, 8 / 8, None)
    assert cell(got, "softmax", "longest at 90 %").text == ">= 128"
    assert cell(got, "s4d", "pairs at 90 %").text == "< 4"
    assert cell(got, "s4d", "longest at 90 %").raw == (None, 0.0, 64)


def test_without_slices_of_their_kind_there_is_no_capacity(record):
    heads = {column.head for column in columns(table([record("gla", 0, slices=[])]))}
    assert not heads & {"pairs at 90 %", "pairs per KiB of state", "longest at 90 %"}


def drawn(records):
    return {figure.title: list(csv.DictReader(figure.csv.splitlines())) for figure in figures.draw(table(records))}


def test_the_front_holds_what_nothing_beats(record):
    assert figures.front([(4, 0.5), (2, 0.6), (8, 0.9), (8, 0.7), (16, 0.9)], True) == [(2, 0.6), (8, 0.9)]
    assert figures.front([(4, 0.5), (2, 0.6), (8, 0.9)], False) == [(2, 0.6), (4, 0.5)]
    sizes = {"small": (64, 0.5), "worse": (128, 0.4), "large": (256, 0.9)}
    found = drawn([record(label, 0, score, state_bytes={"256": size}) for label, (size, score) in sizes.items()])
    front = {row["mixer"]: row["on the front"] for row in found["accuracy against state"]}
    assert front == {"small": "True", "worse": "False", "large": "True"}
    assert {row["FLOPs per token"] for row in found["accuracy against FLOPs"]} == {"250000"}


def test_curves_are_drawn_by_step_and_by_time(record):
    found = drawn([record("gla", 0, 0.9)])
    steps, times = found["learning curves by steps"], found["learning curves by time"]
    assert [float(row["seconds"]) for row in times] == [float(row["step"]) / 10 for row in steps]


def test_time_and_memory_are_drawn_against_length(record):
    found = drawn([record("gla", seed) for seed in range(3)])
    assert [float(row["us per token"]) for row in found["time against length"]] == [6, 7, 9]
    assert [int(row["length"]) for row in found["memory against length"]] == [64, 128, 256]
    assert "time against length" not in drawn([record("gla", 0, speed={})])


def test_the_map_of_layers_has_the_best_arrangement_first(record):
    arrangements = {"a b b": 0.2, "b a b": 0.9, "b b a": 0.3}
    runs = [
        record(f"softmax+gla,{layers}", 0, score, config={"layers": layers.split()})
        for layers, score in arrangements.items()
    ]
    assert [row["layers"] for row in drawn(runs)["accuracy by place in depth"]] == ["b a b", "b b a", "a b b"]
    assert "accuracy by place in depth" not in drawn([record("gla", 0)])


@pytest.mark.parametrize("values", [8, [0, 64], "far", {"pairs": 8, "depth": 2}])
def test_slices_of_any_shape_are_drawn(record, tmp_path, values):
    other = {"pairs": 9, "depth": 3} if isinstance(values, dict) else 1
    two = [{"name": "slice", "values": v, "reason": "", "score": 0.5, "n": 1} for v in (values, other)]
    report([record("gla", 0, slices=two)], tmp_path, Console(quiet=True))
    drawn = (tmp_path / "report.html").read_text().count("<h3>Accuracy by")
    assert drawn == (2 if isinstance(values, dict) else 1)


def test_records_with_next_to_nothing_still_report(record, stopped, tmp_path):
    bare = record("gla", 0, slices=[], curve=[], state_bytes={"8": 0}, speed={}, flops={}, baselines={})
    report([bare, stopped("fnet", 0, "failed", "")], tmp_path, Console(quiet=True))
    assert "failed: no reason was recorded" in (tmp_path / "comparison.md").read_text()
    report([stopped("fnet", 0, "impossible", "looks ahead")], tmp_path, Console(quiet=True))
    assert "no run finished" in (tmp_path / "comparison.md").read_text()


def test_without_matplotlib_one_sentence_says_so(sweep, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    report(sweep(), tmp_path, Console(quiet=True))
    page = (tmp_path / "report.html").read_text()
    assert page.count("pip install seqmix[report]") == 1
    assert "<svg" not in page


def test_a_refused_comparison_writes_nothing(record, tmp_path):
    with pytest.raises(ValueError, match="engine"):
        report([record("a", 0), record("b", 0, engine="fla")], tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_units():
    assert [si(x) for x in (0, 950, 1234, 999_600, 5e9)] == ["0", "950", "1.23 k", "1 M", "5 G"]
    assert [binary(x) for x in (0, 1000, 2048, 5 << 20)] == ["0 B", "1000 B", "2 KiB", "5 MiB"]


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "compare", *map(str, arguments)], cwd=results.ROOT, capture_output=True, text=True
    )


def test_the_command(sweep, tmp_path):
    for run in sweep():
        results.write(tmp_path / "runs" / run["label"] / str(run["seed"]), run)
    done = run_main("report", tmp_path / "runs", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "softmax" in done.stdout and str(tmp_path / "out" / "report.html") in done.stdout
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_says_what_is_wrong_in_a_sentence(tmp_path):
    for arguments, words in (((tmp_path,), "no records"), ((tmp_path / "nowhere",), "is not a directory")):
        done = run_main("report", *arguments)
        assert done.returncode == 2
        assert words in done.stderr and done.stderr.count("\n") == 1
