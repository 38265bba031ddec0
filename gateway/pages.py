"""Pages for people: the merged description at `/docs`, and one for every problem. No script, nothing from elsewhere."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse

from gateway import openapi
from gateway.parts import Here
from shared.problems import Problem, RouteNotFound

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h2{margin-top:2.5rem;border-bottom:1px solid #d5d9de}code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{background:#f3f5f7;padding:.6rem;overflow:auto}table{border-collapse:collapse;margin:.5rem 0}
td,th{border:1px solid #d5d9de;padding:.2rem .6rem;text-align:left;vertical-align:top}
details{margin:.6rem 0}summary{cursor:pointer}.verb{display:inline-block;min-width:4.5rem;font-weight:600}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi_document(here: Here) -> JSONResponse:
    """The merged OpenAPI document."""
    return JSONResponse(await document(here))


@router.get("/docs")
async def docs(here: Here) -> HTMLResponse:
    """The merged OpenAPI document, to read."""
    return _page("Tenfold", docs_body(await document(here)))


@router.get("/problems")
async def problems() -> HTMLResponse:
    """Every problem that this process knows."""
    known = sorted(Problem.known.values(), key=lambda cls: (cls.status, cls.code))
    rows = (
        f'<tr><td>{cls.status}</td><td><a href="/problems/{cls.code}"><code>{cls.code}</code></a></td>'
        f"<td>{escape(cls.title)}</td></tr>"
        for cls in known
    )
    return _page("Problems", f"<h1>Problems</h1><table>{''.join(rows)}</table>")


@router.get("/problems/{code}")
async def problem(code: str) -> HTMLResponse:
    """What a problem's `type` points to: its meaning, in the words of its class."""
    cls = Problem.known.get(code)
    if cls is None:
        raise RouteNotFound(f"There is no problem {code}.")
    text = inspect.cleandoc(cls.__doc__ or cls.title)
    return _page(
        cls.title, f"<h1>{escape(cls.title)}</h1><p><code>{cls.code}</code>, HTTP {cls.status}</p>{_prose(text)}"
    )


async def document(here: Here) -> openapi.Document:
    """The gateway's own description and those of the services that answer, as one."""
    return openapi.merged(here.own_openapi(), await here.catalogue.openapi())


def docs_body(merged: openapi.Document) -> str:
    """The operations by tag, with what they take and give."""
    by_tag: dict[str, list[str]] = {}
    for path, item in merged["paths"].items():
        for verb, operation in item.items():
            if isinstance(operation, Mapping) and "responses" in operation:
                tag = (operation.get("tags") or ["other"])[0]
                by_tag.setdefault(tag, []).append(_operation(path, verb, operation))
    texts = {tag["name"]: tag.get("description", "") for tag in merged.get("tags", [])}
    sections = (
        f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{_prose(texts.get(tag, ""))}{"".join(operations)}'
        for tag, operations in by_tag.items()
    )
    schemas = merged["components"]["schemas"]
    shapes = "".join(
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre></details>"
        for name, schema in schemas.items()
    )
    return (
        f"<h1>{escape(merged['info']['title'])}</h1>"
        '<p>Also as <a href="/openapi.json">OpenAPI</a>. Failures are <a href="/problems">problems</a>.</p>'
        f"{''.join(sections)}<h2>Schemas</h2>{shapes}"
    )


def _operation(path: str, verb: str, operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}</td>"
        f"<td>{'Required. ' if p.get('required') else ''}{escape(p.get('description') or '')}</td></tr>"
        for p in operation.get("parameters", ())
    )
    taken = "".join(_content("Takes", operation.get("requestBody", {}).get("content", {})))
    given = "".join(
        "".join(_content(f"{status}: {answer.get('description', '')}", answer.get("content", {})))
        or f"<p>{escape(status)}: {escape(answer.get('description', ''))}</p>"
        for status, answer in operation["responses"].items()
        if status != "default"
    )
    return (
        f'<details><summary><span class="verb">{escape(verb.upper())}</span><code>{escape(path)}</code> '
        f"{escape(operation.get('summary') or '')}</summary>{_prose(operation.get('description') or '')}"
        f"{f'<table>{rows}</table>' if rows else ''}{taken}{given}</details>"
    )


def _content(title: str, content: Mapping[str, Any]) -> Iterator[str]:
    for media_type, what in content.items():
        schema = what.get("schema", {})
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        shape = f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>' if name else ""
        if not name and schema:
            shape = f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre>"
        yield f"<p>{escape(title)} <code>{escape(media_type)}</code> {shape}</p>"


def _prose(text: str) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip())


def _page(title: str, body: str) -> HTMLResponse:
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    return HTMLResponse(
        f"{page}<style>{_STYLE}</style><body>{body}</body></html>", headers={"Content-Security-Policy": _POLICY}
    )
