"""`report.html`: one self-contained page of a comparison, with its figures inside."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison import Comparison

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #8886; }
img { max-width: 100%; background: white; border-radius: 6px; } pre { overflow-x: auto; } .wide { overflow-x: auto; }
"""


def comparison_page(comparison: Comparison, headlines: list[str], figures: list[Path], command: str | None) -> str:
    """The page: headline figures, table, figures, and the command that makes it again."""
    from .comparison import table_rows

    header, *rows = table_rows(comparison)
    seeds = sorted({run.config["seed"] for group in comparison.groups for run in group.runs})
    title = "Comparison: " + ", ".join(comparison.algorithms)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>Seeds {', '.join(map(str, seeds))}. Accuracy is the mean over the evaluations of the "
        "last fifth of the rounds; ± is the standard deviation over seeds. Bytes are lengths of encoded payloads.</p>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in headlines) + "</ul>",
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
        *(_image(path) for path in figures),
    ]
    if command is not None:
        parts.append(f"<h2>The command</h2><pre>{html.escape(command)}</pre>")
    return "\n".join(parts) + "</html>\n"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
