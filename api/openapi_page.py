"""The OpenAPI document as a page that needs no script and no other server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

Document = dict[str, Any]

_STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}
summary{font-family:monospace;font-size:1rem;cursor:pointer;padding:.2rem 0}
pre{overflow:auto;padding:.6rem;border:1px solid #8886;border-radius:4px}
table{border-collapse:collapse}td,th{padding:.1rem .8rem .1rem 0;text-align:left}
"""


def page(document: Document) -> str:
    """Return the HTML page: each operation with its parameters, bodies and answers."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<p>The whole document, for tools: <a href="/schema/openapi.json">openapi.json</a></p>'
        f"{''.join(_sections(document['paths']))}</body></html>"
    )


def _sections(paths: Document) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, operations in paths.items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>{''.join(operations)}"


def _operation(method: str, path: str, operation: Document) -> str:
    parts = [f"<p>{escape(operation.get('description') or operation['summary'])}</p>"]
    if parameters := operation.get("parameters"):
        parts.append(_table(f"{each['in']}: {each['name']}" for each in parameters))
    if "requestBody" in operation:
        parts.append(_contents("Body", operation["requestBody"]["content"]))
    for status, response in operation["responses"].items():
        title = f"{status} {response.get('description', '')}"
        is_success = status.startswith("2")
        parts.append(_contents(title, response["content"] if is_success else {}))
    heading = escape(f"{method.upper()} {path}")
    return f"<details><summary>{heading}</summary>{''.join(parts)}</details>"


def _table(rows: Iterator[str]) -> str:
    return f"<table>{''.join(f'<tr><td>{escape(row)}</td></tr>' for row in rows)}</table>"


def _contents(title: str, content: Document) -> str:
    parts = [f"<h4>{escape(title)}</h4>" if content else f"<div>{escape(title)}</div>"]
    for media, each in content.items():
        parts.append(f"<div>{escape(media)}</div>")
        if fields := each.get("schema", {}).get("properties"):
            parts.append(f"<p>Fields: {escape(', '.join(fields))}</p>")
        if (example := each.get("example")) is not None:
            text = example if isinstance(example, str) else json.dumps(example, indent=2)
            parts.append(f"<pre>{escape(text)}</pre>")
    return "".join(parts)
