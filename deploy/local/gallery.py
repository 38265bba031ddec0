"""The demo's page: one file with the pictures inside, to be opened in any browser and sent to anybody."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from deploy.local.exhibit import Exhibit, Picture

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 16rem; max-width: 24rem; }
img { width: 100%; height: auto; border-radius: 6px; }
figcaption { font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


def page(exhibits: Sequence[Exhibit], made_at: str) -> str:
    """The whole page as HTML. `made_at` says when and on what, in words."""
    sections = "\n".join(_section(exhibit) for exhibit in exhibits)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Tenfold: what it does</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Tenfold: what it does</h1>\n<p>{escape(made_at)}</p>\n{sections}\n</body>\n</html>\n"
    )


def _section(exhibit: Exhibit) -> str:
    checks = "".join(
        f'<tr><td class="{"good" if check.holds else "bad"}">{"✓" if check.holds else "✗"}</td>'
        f"<td>{escape(check.sentence)}</td><td>{escape(check.measured)}</td></tr>"
        for check in exhibit.checks
    )
    calls = "".join(
        f'<tr><td>{escape(call.operation)}</td><td class="number">{call.seconds:.2f} s</td></tr>'
        for call in exhibit.calls
    )
    return (
        f"<section>\n<h2>{escape(exhibit.title or exhibit.method)} <code>{escape(exhibit.method)}</code></h2>\n"
        f'<div class="pictures">{"".join(map(_figure, exhibit.pictures))}</div>\n'
        f"<table>{checks}</table>\n<table>{calls}</table>\n</section>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.octets).decode()
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:{picture.media_type};base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
