"""Reads a page back as a browser would: its data, and whether it is whole and keeps to itself."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from typing import Any

EMPTY = ("meta", "br", "link", "img", "input")


class Page(HTMLParser):
    """Fails on a tag that is closed out of turn; collects links and what elements hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.parts: dict[str, str] = {}
        self._part = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [str(values[key]) for key in ("src", "href", "xlink:href") if key in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])
        self._part = str(values.get("id", tag))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.parts[self._part] = self.parts.get(self._part, "") + data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._part = ""

    @property
    def data(self) -> Any:
        """What the scripts draw."""
        return json.loads(self.parts["data"])

    def allows(self, part: str) -> bool:
        """Tell whether the policy names the digest of this part."""
        digest = base64.b64encode(hashlib.sha256(self.parts[part].encode()).digest()).decode()
        return f"{part}-src 'sha256-{digest}'" in self.policy
