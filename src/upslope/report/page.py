"""One HTML page that holds everything: opened from a disk, it asks the network for nothing.

The page is a template, a style sheet and plain scripts of this package; the data stand in it as
JSON. Whatever comes from runs reaches the page as JSON alone, with every sign that could end its
element escaped, and the scripts make text nodes of it, never markup. A content security policy
lets nothing run or load but the two parts whose digests it names, and pictures within the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from upslope.files import to_json

SCRIPTS = (
    "dom", "format", "colours", "axes", "tables", "curves", "standing", "costs", "choices",
    "gallery", "map", "histograms", "page",
)  # fmt: skip
"""The scripts in the order in which they are joined: each one calls those before it alone."""

MOST_BYTES = 10_000_000
"""How large a page may be: it is sent by mail and opened on telephones."""


def page(document: Mapping[str, Any], noscript: str = "") -> str:
    """Return the whole HTML document.

    document: as `document.document` gives it. noscript: text that is shown where scripts are off.
    """
    css = _resource("page.css")
    script = "\n".join(_resource(f"{name}.js") for name in SCRIPTS)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_source_digest(script)}'",
            f"style-src '{_source_digest(css)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "POLICY": escape(policy),
        "TITLE": escape(str(document["title"])),
        "CSS": css,
        "NOSCRIPT": escape(noscript),
        "DATA": embedded_json(document),
        "SCRIPT": script,
    }
    template = _resource("page.html")
    head, *rest = template.split("{{")
    # Each mark is replaced once, in the template alone: data may hold marks of their own.
    return head + "".join(
        parts[piece.partition("}}")[0]] + piece.partition("}}")[2] for piece in rest
    )


def embedded_json(value: Any) -> str:
    """Return JSON that may stand in a `script` element: nothing in it ends the element or begins
    a comment, and NaN is null."""
    text = json.dumps(json.loads(to_json(value)), separators=(",", ":"))
    # json.dumps has escaped everything beyond ASCII, the line separators of JavaScript included.
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _source_digest(text: str) -> str:
    """The digest of an inline element as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _resource(name: str) -> str:
    return files("upslope.report").joinpath("assets", name).read_text(encoding="utf-8")
