"""The comparison as one HTML page that needs nothing else: no request, no font, no library."""

import base64
import json
from collections.abc import Sequence
from html import escape

from compare import results, slices
from compare.columns import Cell, Column, columns
from compare.tables import Comparison, Table

STYLE = """
:root { color-scheme: light; --ink: #1d2127; --soft: #646b75; --line: #e3e6ea; --tint: #f7f8fa; --link: #0a58a8; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 104rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
h2 { font-size: 1.3rem; font-weight: 650; margin: 0; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0; }
p { margin: 0.4rem 0; }
a { color: var(--link); }
header p, .quiet, figcaption, footer { color: var(--soft); font-size: 0.875rem; }
section { margin-top: 3rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.verdict { font-size: 1.08rem; margin: 0.6rem 0 1.2rem; max-width: 60rem; }
.warning { border-left: 3px solid #d9a400; background: #fff9e6; padding: 0.6rem 0.9rem; font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.42rem 0.4rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; border-bottom-color: #b9bfc7; vertical-align: bottom; padding-top: 0; }
th.left, td.left { text-align: left; }
td.scores { white-space: normal; min-width: 8rem; max-width: 11rem; }
.slices { margin-top: 1.2rem; } .slices table { width: auto; } .slices td, .slices th { padding: 0.25rem 0.8rem; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td:first-child { font-weight: 600; }
tbody tr:hover { background: var(--tint); }
tr.reference td { color: var(--soft); font-weight: 400; }
tr.none td { color: #8a5a00; }
th button { all: unset; cursor: pointer; }
th button:hover { color: var(--ink); }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
ul { margin: 1rem 0; padding-left: 1.1rem; color: var(--soft); font-size: 0.875rem; max-width: 60rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1.75rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0.3rem 0; }
details { margin-top: 1.2rem; font-size: 0.875rem; }
summary { cursor: pointer; color: var(--soft); }
pre { background: var(--tint); padding: 0.9rem; overflow-x: auto; font-size: 0.8rem; line-height: 1.45; }
@media print { body { max-width: none; padding: 0; } details, figcaption { display: none; } }
"""

# Rows sort by the number behind the text; a second click turns the order, and references stay at the end.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const th = button.parentElement, i = th.cellIndex, body = th.closest("table").tBodies[0];
  const down = th.getAttribute("aria-sort") === "ascending";
  for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[i].dataset.value ?? "";
  const rows = [...body.rows].sort((a, b) => {
    const reference = row => row.classList.contains("reference");
    const last = reference(a) - reference(b) || (key(a) === "") - (key(b) === "");
    const x = key(a), y = key(b), numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    return last || (numbers ? x - y : x.localeCompare(y)) * (down ? -1 : 1);
  });
  body.append(...rows);
});
"""


def render(comparison: Comparison, figures: dict[str, list] | None, instead: str) -> str:
    """The page; `figures` by task, or None and a sentence `instead`."""
    runs = [run for table in comparison.tables for row in table.rows for run in row.runs]
    sweeps = sorted({run["sweep"] for run in runs if run["sweep"]})
    mixers = len({row.label for table in comparison.tables for row in table.rows})
    summary = f"{_count(len(runs), 'run')} · {_count(mixers, 'mixer')} · {_count(len(comparison.tables), 'task')}"
    if sweeps:
        summary += f" · sweep {', '.join(sweeps)}"
    title = "Comparison: " + ", ".join(table.task for table in comparison.tables)
    body = "\n".join(
        _section(table, None if figures is None else figures[table.task], instead) for table in comparison.tables
    )
    return document(title, summary, body, comparison.warnings)


def document(title: str, summary: str, body: str, warnings: Sequence[str] = ()) -> str:
    """A whole page around a body of HTML."""
    warned = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(summary)}</p>{warned}</header>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _section(table: Table, figures: list | None, instead: str) -> str:
    direction = f"Test {table.metric}; {'higher' if table.higher else 'lower'} is better. Click a heading to sort."
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    drawn = "".join(drawing(table.task, figure) for figure in figures) if figures is not None else ""
    missing = f'<p class="quiet">{escape(instead)}</p>' if figures is None else ""
    return f"""<section>
<h2>{escape(table.task)}</h2>
<p class="quiet">{escape(direction)}</p>
<p class="verdict">{escape(table.verdict)}</p>
{_grid(table)}
{_slices(table)}
<ul>{notes}</ul>
{missing}<div class="figures">{drawn}</div>
{_details(table)}
</section>"""


def _grid(table: Table) -> str:
    shown = columns(table)
    head = "".join(
        f'<th{_left(column)} scope="col"><button type="button">{escape(column.head)}</button></th>' for column in shown
    )
    body = "".join(
        f"<tr{'' if row.scores else ' class=none'}>{''.join(_cell(column, column.cell(row)) for column in shown)}</tr>"
        for row in table.rows
    )
    for known in table.references.items():
        cells = "".join(_cell(column, column.reference(*known)) for column in shown)
        body += f'<tr class="reference">{cells}</tr>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _slices(table: Table) -> str:
    head, *lines = slices.means(table) or [[]]
    return plain(head, lines) if lines else ""


def plain(head: list[str], lines: list[list[str]]) -> str:
    """A table of text, whose first column names the lines."""
    body = "".join(
        "<tr>" + "".join(f"<td{' class=left' * (not i)}>{escape(cell)}</td>" for i, cell in enumerate(line)) + "</tr>"
        for line in lines
    )
    cells = "".join(f"<th{' class=left' * (not i)} scope=col>{escape(cell)}</th>" for i, cell in enumerate(head))
    return f'<div class="scroll slices"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: Column, cell: Cell) -> str:
    value = "" if cell.raw[0] is None else cell.raw[0]
    return f'<td{_left(column)} data-value="{escape(str(value))}">{escape(cell.text)}</td>'


def _left(column: Column) -> str:
    return {"mixer": ' class="left"', "scores": ' class="left scores"', "outcome": ' class="left"'}.get(
        column.names[0], ""
    )


def drawing(name: str, figure) -> str:
    """A figure with its data to download; the file is named for `name` and the title."""
    data = base64.b64encode(figure.csv.encode()).decode()
    file = f"{name} {figure.title}.csv".replace(" ", "-").replace("/", "-")
    svg = figure.svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.title)}"', 1)
    link = f'<a download="{escape(file)}" href="data:text/csv;base64,{data}">data</a>'
    title = figure.title[:1].upper() + figure.title[1:]
    return f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{link}</figcaption></figure>"


def _details(table: Table) -> str:
    protocol = json.dumps(results.flat(table.protocol), indent=1)
    runs = "\n".join(
        f"{run['label']}  seed {run['seed']}  {run['outcome']}  config {run['config_hash']}  code {run['code']}"
        for row in table.rows
        for run in row.runs
    )
    return (
        f"<details><summary>Protocol</summary><pre>{escape(protocol)}</pre></details>"
        f"<details><summary>Runs</summary><pre>{escape(runs)}</pre></details>"
    )
