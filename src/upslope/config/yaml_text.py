"""YAML of configurations, bounded: hostile text costs no memory, and fails with one clear error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from upslope.errors import ConfigError

MOST_BYTES = 4 * 2**20
"""Of a configuration: one with the names of 100,000 classes has half of it."""
_MOST_VALUES = 10**6
"""Values with every alias written out; PyYAML reads about 100,000 in a second."""
_DEEPEST = 64
"""Levels of lists and mappings in one another; configurations have about five."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_IN_OTHER_BASES = re.compile(r"[+-]?0[0_]*[1-7][0-7_]+|.*:.*")
"""Numbers that YAML 1.1 takes to be in base 8 or 60: 010 is 8, and 1:30 is 90."""
_DIGITS = 100
"""Of an integer: Python itself cannot write one of more than 4,300 in a message."""
_BRACKETS = 1000
"""Brackets open at once, those in texts included."""


def read_yaml(text: str, where: str) -> Any:
    """Return what YAML text holds, as plain data; no tag makes an object of another kind.

    where: what the text is, for messages.

    Raises:
        ConfigError: it is no YAML, larger than 4 MiB, deeper than 64 levels, of more than a million
            values with its aliases written out, contains itself, has a key twice in a mapping, or a
            number that YAML reads in base 8 or 60.
    """
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise ConfigError(
            f"Expected {where} to be a configuration of at most {MOST_BYTES // 2**20} MiB but it "
            "is larger. Give the file of a configuration; data lie in files of their own."
        )
    try:
        _check_brackets(text)
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _count(node, {}, ())
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(
            f"Expected {where} to be YAML of at most {_DEEPEST} levels but it is nested deeper."
        ) from error
    # ValueError and its like: dates and numbers that there are not, such as 2001-99-99.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"Expected {where} to be YAML but: {error}.") from error


def _check_brackets(text: str) -> None:
    """Refuse brackets opened far beyond the depth allowed, over which PyYAML would take hours."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > _BRACKETS:
            raise ValueError(f"more than {_BRACKETS:,} brackets are opened and not closed")


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that is there twice, of which PyYAML would take the last without a word."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in lines:
            raise ValueError(
                f"the key {key.value!r} is there in line {lines[name]} and again in line {line}"
            )
        lines[name] = line


def _check_number(text: str) -> None:
    """Refuse a number of too many digits, or one that YAML 1.1 reads in base 8 or 60."""
    if len(text) > _DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    if _IN_OTHER_BASES.fullmatch(text):
        raise ValueError(
            f"{text} is the number {yaml.safe_load(text)} in YAML, in which a leading 0 stands for "
            f"base 8 and a colon for base 60. Write that number, or '{text}' in quotes for a text"
        )


def _count(node: yaml.Node, counts: dict[int, int], above: tuple[int, ...]) -> int:
    """Return the values that a node stands for, each alias counted as what it repeats.

    counts: of the nodes counted before, by `id`. above: the nodes that hold this one.
    """
    if id(node) in above:
        raise ValueError("an alias stands within what it repeats")
    if len(above) >= _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    if id(node) not in counts:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
            _check_keys(node)
        elif node.tag in _NUMBERS:
            _check_number(node.value)
        counts[id(node)] = 1 + sum(_count(c, counts, (*above, id(node))) for c in children)
        if counts[id(node)] > _MOST_VALUES:
            raise ValueError(f"its aliases make more than {_MOST_VALUES:,} values of it")
    return counts[id(node)]
