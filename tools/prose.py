"""Measures of the prose in the source, with limits; `make check` runs it.

    python tools/prose.py            # one line per measure; exit status 1 beyond a limit
    python tools/prose.py --list     # the places behind each measure too

A public object is a function, a class or a public method of a class that its module, or a package
above it, names in `__all__`. Four things are asked of each, where they apply: its arguments (named
in the docstring of the function, of its class or of the protocol that declares it, or described in
the annotation of an option), its result (the docstring opens with a verb such as Return or Yield,
or with the noun), its errors (where its body raises), and an example (">>>", for what users call
first).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "upslope"

MOST = {
    "docstrings under 26 characters": 0,
    "names `found`": 0,
    "rates told as `a sample`": 0,
    "modules that open with What": 0,
    "participles as names": 0,
    "arguments told that there are not": 0,
}
"""The most places that there may be."""

LEAST = {
    "arguments documented": 98.0,
    "returns documented": 98.0,
    "raises documented": 98.0,
    "examples": 100.0,
    "comments per 100 lines of gradnorm": 3.0,
}
"""The least shares in percent, and comment lines per 100 lines."""

EXAMPLES = (
    "gradnorm.engine.gradient_norms",
    "gradnorm.explain.explain",
    "strategies.build",
    "models.build",
    "tasks.build",
    "datasets.load",
    "experiment.run.Experiment",
    "comparison.run.compare",
    "scoring.files.score_to_file",
    "scoring.predictions.predict_to_file",
    "ledger.store.read_run",
    "config.read.load",
)
"""Objects that a user calls first: each has an example that runs as a test."""

IRREGULAR = frozenset(
    (
        *("alone", "begun", "bought", "broken", "built", "caught", "chosen", "done", "drawn"),
        *("driven", "each", "eaten", "fallen", "found", "given", "gone", "grown", "held", "kept"),
        *("known", "laid", "learnt", "lent", "lost", "made", "meant", "met", "own", "paid", "seen"),
        *("sent", "shown", "sold", "sought", "spent", "spoken", "stolen", "taken", "taught"),
        *("thrown", "told", "torn", "understood", "withdrawn", "won", "worn", "woven", "written"),
    )
)
"""Participles that do not end in -ed, and two adverbs that were used like them."""

NO_PARTICIPLE = frozenset(
    ("bleed", "bred", "breed", "embed", "feed", "hundred", "need", "red", "seed", "shed", "speed")
)
"""Words that end in -ed and are no participles."""

ALLOWED_PARTICIPLES = frozenset(["frozen", "hidden", "labelled", "left", "split", "unlabelled"])
"""Terms of the field: a frozen network, the labelled set, unlabelled samples."""

PUBLIC_PARTICIPLES = frozenset(
    (
        "distributed.ranks.joined",
        "experiment.own_training.done",
        "experiment.run.passed",
        "experiment.run.shared",
        "experiment.run.withdrawn",
        "gradnorm.losses.expected",
        "gradnorm.losses.supervised",
        "gradnorm.losses.weighted",
        "influence.leave_one_out.removed",
        "models.efficientnet.pretrained",
        "progress.Interrupted",
        "reproduction.scales.schema.EXPECTED",
        "tasks.augmentation.mirrored",
        "tasks.base.mirrored",
        "tasks.classification.mirrored",
        "tasks.photographs.mirrored",
    )
)
"""Public names that users call or pass by keyword, which stay as they are: module and name."""

SHORT = 26
QUANTITIES = (
    "numbers?|loss|losses|labels?|rows?|values?|posteriors?|forwards?|backwards?|masks?|logits|"
    "multiply-adds|seconds|norms?|gradients?|ids?|pass|passes|targets?|calls?|trainings"
)
RATE = re.compile(rf"\b(?:{QUANTITIES}) a (?:sample|candidate|class|cycle|seed|batch|step)\b")
NO_RATE = re.compile(r"random numbers a sample|costs a label")
TOLD = re.compile(r"(?:^|(?<=[.;] ))((?:[a-z_][a-z0-9_]*)(?:, [a-z_][a-z0-9_]*)*): ")
"""Where a docstring tells of arguments: at the beginning of a sentence, "name: ..."."""
RETURNS = re.compile(
    r"^(?:Return|Yield|Whether|How many|The |A |An |\(|\||Every|Those|`)|\bReturns\b|\bYields\b|->"
)


@dataclass(frozen=True)
class Place:
    """Where a measure counts: a file, a line and a name."""

    file: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE.parents[1])}:{self.line}: {self.name}"


@dataclass(frozen=True)
class Share:
    """How many of the objects have something, and which have not."""

    having: int
    lacking: tuple[Place, ...]

    @property
    def percent(self) -> float:
        """Return the share in percent; 100 where there are no objects."""
        total = self.having + len(self.lacking)
        return 100.0 * self.having / total if total else 100.0


Definition = ast.FunctionDef | ast.ClassDef


def modules() -> dict[Path, ast.Module]:
    """Return file -> its syntax tree, for every file of the source."""
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(SOURCE.rglob("*.py"))}


def faults(trees: dict[Path, ast.Module]) -> dict[str, list[Place]]:
    """Return measure of `MOST` -> the places that it counts."""
    places: dict[str, list[Place]] = defaultdict(list)
    short, bound, rate, what, participle, absent = MOST
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                name, line = getattr(node, "name", "(module)"), getattr(node, "lineno", 1)
                if text is not None and len(text) < SHORT:
                    places[short].append(Place(path, line, f"{name}: {text}"))
                if isinstance(node, ast.Module) and (text or "").startswith("What "):
                    places[what].append(Place(path, line, (text or "").partition("\n")[0]))
            if isinstance(node, Definition):
                for name in _absent_arguments(node):
                    places[absent].append(Place(path, node.lineno, f"{node.name}: {name}"))
            if "found" in _names(node):
                places[bound].append(Place(path, getattr(node, "lineno", 1), "found"))
        for line, name in _participles(tree):
            if f"{_module(path)}.{name}" not in PUBLIC_PARTICIPLES:
                places[participle].append(Place(path, line, name))
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if RATE.search(text) and not NO_RATE.search(text):
                places[rate].append(Place(path, number, text.strip()))
    return {measure: places[measure] for measure in MOST}


def _absent_arguments(node: Definition) -> Iterator[str]:
    """Yield the names of which a docstring tells as of arguments or fields, and that are neither.

    What takes any arguments, or inherits some, may call them as it likes.
    """
    if isinstance(node, ast.ClassDef) and node.bases:
        return
    known = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.arguments) and inner.vararg and isinstance(node, ast.FunctionDef):
            return
        if isinstance(inner, ast.arg):
            known.add(inner.arg)
        elif isinstance(inner, ast.FunctionDef) and inner is not node:
            known.add(inner.name)
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            known.add(inner.attr)
        elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            known.add(inner.target.id)
    text = (ast.get_docstring(node) or "").partition("Raises:")[0].partition("Example:")[0]
    for sentence in TOLD.finditer(" ".join(text.split())):
        yield from (name for name in sentence[1].split(", ") if name not in known)


def _names(node: ast.AST) -> tuple[str, ...]:
    """Return the names that a node binds."""
    if isinstance(node, ast.Name):
        return (node.id,) if isinstance(node.ctx, ast.Store) else ()
    if isinstance(node, ast.arg):
        return (node.arg,)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return (node.name,)
    if isinstance(node, ast.ExceptHandler) and node.name:
        return (node.name,)
    return ()


def _participles(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) where a participle alone names a thing.

    Counted are variables, arguments, functions, classes, constants, and private methods and
    attributes. A public field or property may be one: after its object it is an adjective, as in
    `run.finished`. So may a test, with a verb before it: `is_shared`.
    """

    def visit(node: ast.AST, in_class: bool) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            names = _names(child)
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                names = (child.attr,) if child.attr.startswith("_") else ()
            for name in names:
                is_field = in_class and not name.startswith("_")
                if not is_field and _is_participle(name.strip("_")):
                    yield child.lineno, name  # type: ignore[attr-defined]
            is_class = isinstance(child, ast.ClassDef)
            is_statement = isinstance(child, ast.AnnAssign | ast.Assign)
            yield from visit(child, is_class or (in_class and is_statement))

    yield from visit(tree, False)


def _is_participle(word: str) -> bool:
    """Whether a name is a participle alone; allowed ones are not. `ProofFailed` is two words."""
    if not (word.isupper() or word[1:].islower()):
        return False
    word = word.lower()
    if word in ALLOWED_PARTICIPLES or word in NO_PARTICIPLE:
        return False
    return word in IRREGULAR or re.fullmatch(r"[a-z]{2,}ed", word) is not None


def public(trees: dict[Path, ast.Module]) -> Iterator[tuple[Place, str, Definition, str]]:
    """Yield (place, dotted name, definition, docstring of its class) of each public object."""
    exported = {pair for path, tree in trees.items() for pair in _exports(path, tree)}
    for path, tree in trees.items():
        module = _module(path)
        names = {name for origin, name in exported if origin == module}
        for node in tree.body:
            if isinstance(node, Definition) and node.name in names:
                yield Place(path, node.lineno, node.name), _dotted(module, node.name), node, ""
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        place = Place(path, inner.lineno, f"{node.name}.{inner.name}")
                        dotted = _dotted(module, f"{node.name}.{inner.name}")
                        yield place, dotted, inner, ast.get_docstring(node) or ""


def _module(path: Path) -> str:
    """Return the dotted name of a file's module within the package; "" for its top."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _dotted(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _exports(path: Path, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each name in `__all__`, with the module that it is from."""
    named: set[str] = set()
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            if any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
                named |= {i.value for i in node.value.elts if isinstance(i, ast.Constant)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("upslope."):
            origin |= {a.name: (node.module or "").removeprefix("upslope.") for a in node.names}
    for name in named:
        yield origin.get(name, _module(path)), name


def shares(trees: dict[Path, ast.Module]) -> dict[str, Share]:
    """Return measure of `LEAST`, but for comments -> who has it and who has not."""
    having: dict[str, int] = defaultdict(int)
    lacking: dict[str, list[Place]] = defaultdict(list)

    def count(measure: str, place: Place, has: bool) -> None:
        if has:
            having[measure] += 1
        else:
            lacking[measure].append(place)

    dotted_names = set()
    options = _described_aliases(trees)
    protocols = _protocol_methods(trees)
    for place, dotted, node, of_class in public(trees):
        dotted_names.add(dotted)
        text = ast.get_docstring(node) or ""
        if dotted in EXAMPLES:
            count("examples", place, ">>>" in text)
        if isinstance(node, ast.ClassDef):
            arguments = _fields(node, options)
        else:
            arguments = _parameters(node, options)
            of_class += protocols.get(node.name, "")
            if _returns(node):
                count("returns documented", place, bool(RETURNS.search(text)))
            if any(isinstance(inner, ast.Raise) and inner.exc for inner in ast.walk(node)):
                count("raises documented", place, "Raise" in text or "Error" in text)
        if arguments:
            told = all(_is_told(name, f"{text}\n{of_class}") for name in arguments)
            count("arguments documented", place, told)
    for name in sorted(set(EXAMPLES) - dotted_names):
        lacking["examples"].append(Place(SOURCE, 0, f"{name} (no such public object)"))
    return {m: Share(having[m], tuple(lacking[m])) for m in LEAST if "comments" not in m}


def _protocol_methods(trees: dict[Path, ast.Module]) -> dict[str, str]:
    """Return method -> the docstrings that protocols give it."""
    texts: dict[str, str] = defaultdict(str)
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(
                "Protocol" in ast.unparse(b) for b in node.bases
            ):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        texts[inner.name] += (
                            f"\n{ast.get_docstring(inner)}\n{ast.get_docstring(node)}"
                        )
    return texts


def _described_aliases(trees: dict[Path, ast.Module]) -> set[str]:
    """Return the names of annotations that describe their option themselves."""
    return {
        target.id
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and "description=" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _is_described(annotation: ast.expr | None, options: set[str]) -> bool:
    """Whether an annotation says what the option is."""
    if annotation is None:
        return False
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return "description=" in ast.unparse(annotation) or bool(names & options)


def _parameters(node: ast.FunctionDef, options: set[str]) -> list[str]:
    """Return the names of the parameters that a docstring must tell."""
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    asked = (a for a in every if not _is_described(a.annotation, options))
    return [a.arg for a in asked if a.arg not in ("self", "cls")]


def _fields(node: ast.ClassDef, options: set[str]) -> list[str]:
    """Return the fields of a dataclass, or the parameters of `__init__`; none of a protocol."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return _parameters(inner, options)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    asked: list[str] = []
    for inner, after in zip(node.body, (*node.body[1:], None), strict=True):
        if not (isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)):
            continue
        # A field may also be told in a string below it.
        has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        constant = "ClassVar" in ast.unparse(inner.annotation) or inner.target.id.startswith("_")
        if not (constant or has_text or _is_described(inner.annotation, options)):
            asked.append(inner.target.id)
    return asked


def _is_told(name: str, text: str) -> bool:
    """Whether a docstring names an argument: "name:", `name`, or its word in a sentence."""
    return bool(re.search(rf"(?<![\w]){re.escape(name)}\b", text))


def _returns(node: ast.FunctionDef) -> bool:
    """Whether a function returns something."""
    return node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")


def comments_per_100_lines(folder: Path) -> float:
    """Return how many lines out of 100 that are not empty have a comment, over a folder."""
    lines = [
        line
        for path in folder.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    return (
        100 * sum(bool(re.search(r"(?:^|\s)# (?!noqa|type:|fmt:)", x)) for x in lines) / len(lines)
    )


def main() -> int:
    """Print the table; return 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="the places behind each measure")
    listed = parser.parse_args().list
    trees, passed = modules(), False
    for measure, places in faults(trees).items():
        bad = len(places) > MOST[measure]
        passed |= bad
        print(f"{measure:36} {len(places):6d}   at most {MOST[measure]}{'   <-- ' if bad else ''}")
        for place in places if listed or bad else ():
            print(f"    {place}")
    for measure, share in shares(trees).items():
        bad = share.percent < LEAST[measure]
        passed |= bad
        total = share.having + len(share.lacking)
        end = f"of {total}   at least {LEAST[measure]:g}{'   <--' if bad else ''}"
        print(f"{measure:36} {share.percent:5.1f}%   {end}")
        for place in share.lacking if listed else ():
            print(f"    {place}")
    comments = comments_per_100_lines(SOURCE / "gradnorm")
    measure = "comments per 100 lines of gradnorm"
    bad = comments < LEAST[measure]
    print(f"{measure:36} {comments:6.1f}   at least {LEAST[measure]:g}{'   <--' if bad else ''}")
    return int(passed or bad)


if __name__ == "__main__":
    sys.exit(main())
