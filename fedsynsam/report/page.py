"""`report.html`: one self-contained page of a comparison. Its charts need the extra `[report]`; so does the page."""

from __future__ import annotations

import base64
import html
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .charts import Chart
    from .groups import Comparison

NEEDED = ("plotly", "scipy")

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #8886; }
select { font: inherit; max-width: 100%; margin: 0 0 .5rem .3rem; }
.main-svg .infolayer text, .main-svg .xaxislayer-above text, .main-svg .yaxislayer-above text,
.main-svg .legendtext { fill: CanvasText !important; }
.wide { overflow-x: auto; } .wide :is(th, td) { white-space: nowrap; }
details .wide { max-height: 24rem; overflow-y: auto; }
summary { cursor: pointer; } img { max-width: 100%; image-rendering: pixelated; }
:focus-visible { outline: 2px solid #4269d0; outline-offset: 2px; }
"""

# Shows the lines of the chosen setting, or all.
_SCRIPT = """
for (const select of document.querySelectorAll("select[data-chart]"))
  select.addEventListener("change", () => {
    const chart = document.getElementById(select.dataset.chart);
    Plotly.restyle(chart, {visible: chart.data.map(line => select.value === "*" || line.meta === select.value)});
  });
"""


def why_no_page() -> str | None:
    """What is missing for the page, and how to get it; None if nothing is."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"report.html needs {' and '.join(missing)}: pip install 'fedsynsam[report]'" if missing else None


def comparison_page(comparison: Comparison, headlines: list[str], command: str | None) -> str:
    """The page: headline figures, tables, charts with their numbers, synthetic images, and the command."""
    from .charts import charts
    from .comparison import table_rows
    from .paired import PAIRED, paired_table
    from .results import settings_note

    names = comparison.algorithms
    title = "Comparison: " + ", ".join(names) if len(names) < 7 else f"Comparison of {len(names)} algorithms"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><main><h1>{html.escape(title)}</h1>",
        f"<p>Seeds {', '.join(map(str, comparison.seeds))}. Accuracy is the mean over the evaluations of the "
        "last fifth of the rounds; ± is the standard deviation over seeds. Bytes are lengths of encoded payloads.</p>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in headlines) + "</ul>",
    ]
    for name, part in comparison.parts():
        header, *rows = table_rows(part)
        parts += [f"<h2>{html.escape(name)}</h2>"] if name else []
        parts.append(_table(header, rows))
    if (note := settings_note(comparison)) is not None:
        parts.append(f"<p>{html.escape(note)}</p>")
    if pairs := paired_table(comparison):
        parts += [f"<h2>{PAIRED}</h2>", _table(pairs[0], pairs[1:])]
    for number, chart in enumerate(charts(comparison)):
        parts += _chart(chart, number)
    parts += _synthetic_images(comparison)
    parts += _commands(comparison, command)
    parts.append(f"<script>{_SCRIPT}</script>")
    return "\n".join(parts) + "</main></html>\n"


def _commands(comparison: Comparison, command: str | None) -> list[str]:
    """The command of the comparison, and those that make each of its runs alone."""
    lines = [run.command for group in comparison.groups for run in group.runs]
    return [
        "<h2>The commands</h2>",
        "" if command is None else f"<pre>{html.escape(command)}</pre>",
        f"<details><summary>Each run alone</summary><pre>{html.escape(chr(10).join(lines))}</pre></details>",
    ]


def _chart(chart: Chart, number: int) -> list[str]:
    from .charts import styled

    drawn = styled(chart).to_html(
        full_html=False, include_plotlyjs=number == 0, div_id=f"chart-{number}",
        config={"responsive": True, "displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]]},
    )  # fmt: skip
    return [
        f"<h2>{html.escape(chart.title)}</h2>",
        _choice(chart, number),
        f'<div role="img" aria-label="{html.escape(chart.title)}; the numbers are in the table below">{drawn}</div>',
        f"<details><summary>The numbers</summary>{_table(chart.header, chart.rows)}</details>",
    ]


def _choice(chart: Chart, number: int) -> str:
    """What to show, where there is something to choose."""
    if len(chart.settings) < 2:
        return ""
    choices = "".join(f"<option>{html.escape(setting)}</option>" for setting in chart.settings)
    choices += '<option value="*">all</option>'
    return f'<label>Show<select data-chart="chart-{number}" autocomplete=off>{choices}</select></label>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<div class=wide tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _synthetic_images(comparison: Comparison) -> list[str]:
    """The synthetic set of the first run that left one, a row of images a class."""
    from .pictures import synthetic_png

    for group in comparison.groups:
        for run in group.runs:
            picture = synthetic_png(run.path)
            if picture is not None:
                name = f"{group.algorithm}, {group.compressor}, seed {run.config['seed']}"
                learned = not run.config.get("synthetic") or any(row.synthetic_loss is not None for row in run.rounds)
                origin = "Learned last in the run" if learned else "Given, in a file, to the run"
                data = base64.b64encode(picture).decode()
                return [
                    "<h2>The synthetic images</h2>",
                    f"<p>{origin} {html.escape(name)}: a row of images for each class.</p>",
                    f'<img alt="synthetic images, a row for each class" src="data:image/png;base64,{data}">',
                ]
    return []
