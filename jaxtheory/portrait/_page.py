"""The report: one self-contained page that opens offline."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtheory.portrait._section import Finding, Row

_LABELS = {
    "agrees": "agrees with theory",
    "disagrees": "differs from theory",
    "measured": "measured",
}

_CSS = """
body{font:16px/1.55 system-ui,sans-serif;color:#222;max-width:54rem;
  margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.5rem;line-height:1.25;margin-bottom:.2rem}
h2{font-size:1.15rem;margin:2.6rem 0 .4rem}
.quiet{color:#666;font-size:.88rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin:1rem 0}
td,th{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid #e5e5e5}
th{font-weight:600;color:#555}
img{width:100%;height:auto}
p.finding{margin:.5rem 0}
.mark{display:inline-block;font-size:.72rem;font-weight:600;padding:.08rem .5rem;
  border-radius:.7rem;margin-right:.45rem;vertical-align:.08rem}
.agrees{background:#dff1e6;color:#17603a}
.disagrees{background:#fbe6d6;color:#8a4210}
.measured{background:#e9edf3;color:#3d4c63}
.alert{background:#fbe6d6;border-left:4px solid #d1762b;padding:.7rem 1rem}
details{margin:.6rem 0}
"""


class Block(NamedTuple):
    """One section on the page.

    Attributes:
        name: Its key, which is also its anchor.
        title: Its heading.
        picture: Its figure, SVG.
        findings: The sentences under the figure.
    """

    name: str
    title: str
    picture: bytes
    findings: list[Finding]


def page(
    *,
    title: str,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    rows: Sequence[Row],
    blocks: Sequence[Block],
    diverged_at: int | None,
    last_step: int,
) -> str:
    """Write the report as one HTML page.

    Args:
        title: What the portrait is of.
        settings: The configuration.
        environment: Versions, device and seed.
        rows: The table of key numbers.
        blocks: The sections.
        diverged_at: The step whose loss or update was not finite, or None.
        last_step: The last step that was recorded.

    Returns:
        The page; figures are inside it.
    """
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<title>Portrait: {html.escape(title)}</title><style>{_CSS}</style></head>",
        f"<body><h1>{html.escape(title)}</h1>",
        "<p class=quiet>A portrait of one training run: what theory expects of it, "
        "what was measured, and whether they agree.</p>",
        _alert(diverged_at, last_step),
        _table(("quantity", "measured", "hold against"), rows),
        *[_section(block) for block in blocks],
        "<h2>How this was made</h2>",
        _details("Configuration", settings),
        _details("Environment", environment),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _alert(diverged_at, last_step):
    if diverged_at is None:
        return ""
    return (
        f"<p class=alert>Training diverged: the loss or the update of step "
        f"{diverged_at:,} is not finite. Everything below is what was recorded before, "
        f"up to step {last_step:,}. A smaller learning rate would help.</p>"
    )


def _table(header, rows):
    cells = lambda row, tag: "".join(
        f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row
    )
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(header, 'th')}</tr>{body}</table>"


def _section(block):
    data = base64.b64encode(block.picture).decode()
    findings = "".join(
        f"<p class=finding><span class='mark {finding.verdict}'>"
        f"{_LABELS[finding.verdict]}</span>{html.escape(finding.text)}</p>"
        for finding in block.findings
    )
    return (
        f"<section id={block.name}><h2>{html.escape(block.title)}</h2>"
        f"<img alt='{html.escape(block.title)}' "
        f"src='data:image/svg+xml;base64,{data}'>{findings}</section>"
    )


def _details(name, mapping):
    rows = [
        (key, ", ".join(f"{k} {v}" for k, v in value.items()))
        if isinstance(value, Mapping)
        else (key, value)
        for key, value in mapping.items()
    ]
    return f"<details><summary>{name}</summary>{_table(('', ''), rows)}</details>"
