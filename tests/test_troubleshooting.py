"""docs/troubleshooting.md lists every message of the package that an operator can see, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
VALUE = "\0"
"""Stands for a value in a message."""

LOGS = {"log.warning", "log.error", "log.exception", "self.log.warning", "self.log.error", "self.log.exception"}
BUILDERS = {"invalid_response", "exc.describe", "final_error", "self._reject", "_inconsistent", "_error_class(status)"}
"""Functions that return an error or a text for a message."""

NAMES = {"_remedy", "message", "remedy"}
"""Variables and class attributes that hold a message or a part of one."""


class Messages(ast.NodeVisitor):
    """Collect the messages of a module."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.found: set[str] = set()
        self._assigned: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._assigned.setdefault(node.targets[0].id, []).append(node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self._assigned.setdefault(node.target.id, []).append(node.value)
        for name in NAMES:
            self._add(ast.Name(name))
        self.visit(tree)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name in LOGS:
            self._add(node.args[0])
        elif name.endswith(("Error", "Exception", "Timeout")) or name in BUILDERS:
            for argument in node.args:
                self._add(argument)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        # What the Test button of the connection shows, and the problems that the reader of files checks.
        if "message" in node.name or node.name in {"test_connection", "_checks"}:
            for statement in ast.walk(node):
                if isinstance(statement, (ast.Return, ast.Yield)) and statement.value:
                    self._add(statement.value)
        self.generic_visit(node)

    def _add(self, node: ast.expr) -> None:
        for text in (found.replace("\n", " ") for found in self._texts(node, frozenset())):
            # The rest are values, templates such as "%s [%s]", SQL, and remedies that follow another message.
            if re.match(f"(?!{VALUE}[.;]|{VALUE} [A-Z]).*[a-z] .*[a-z]{{3}}", text):
                self.found.add(text)

    def _texts(self, node: ast.expr, within: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[-.\d]*[a-z]", VALUE, node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
            for part in node.values:  # a part that is a message on its own
                if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
                    yield from self._texts(part.value, within)
        elif isinstance(node, ast.Tuple):
            for element in node.elts:
                yield from self._texts(element, within)
        elif isinstance(node, ast.IfExp):
            yield from self._texts(node.body, within)
            yield from self._texts(node.orelse, within)
        elif isinstance(node, ast.Name) and node.id not in within:
            for value in self._assigned.get(node.id, ()):
                yield from self._texts(value, within | {node.id})
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            for text in self._texts(node.func.value, within):
                yield re.sub(r"\{.*?\}", VALUE, text)
        elif isinstance(node, ast.Call) and re.search("one_line|redact", ast.unparse(node.func)):
            for argument in node.args:
                yield from self._texts(argument, within)


def messages_of_the_package() -> dict[str, str]:
    """Return the messages, each with the file that it is in."""
    package = ROOT / "airflow_provider_stem"
    return {
        text: str(path.relative_to(ROOT))
        for path in sorted(package.rglob("*.py"))
        if "simulator" not in path.parts
        for text in sorted(Messages(path.read_text("utf-8")).found)
    }


def messages_of_the_page() -> list[str]:
    """Return the lines that are one code span, as items of a list or below one."""
    return re.findall(r"^(?:- |  )`([^`]+)`\\$", PAGE.read_text("utf-8"), re.MULTILINE)


def pattern_of(message: str) -> re.Pattern[str]:
    """
    Return a pattern of a message on the page: the whole message, or its first sentences.

    A value may be anything there, such as SITE.
    """
    # The remedy may be left out, since the page explains it.
    sentences = re.split(r"(?<=[.])(?= [A-Z])", message)
    pattern = ""
    for sentence in reversed(sentences):
        parts = ".*?".join(map(re.escape, sentence.split(VALUE)))
        pattern = parts + (f"(?:{pattern})?" if pattern else "")
    return re.compile(pattern)


def test_the_page_lists_every_message_and_no_other():
    listed = messages_of_the_page()
    assert len(listed) == len(set(listed)), "A message is listed twice"
    places = messages_of_the_package()
    patterns = {text: pattern_of(text) for text in places}
    missing = [
        f"{places[text]}: {text.replace(VALUE, '…')}"
        for text, pattern in patterns.items()
        if not any(pattern.fullmatch(entry) for entry in listed)
    ]
    gone = [entry for entry in listed if not any(pattern.fullmatch(entry) for pattern in patterns.values())]
    assert not missing, "Add to docs/troubleshooting.md:\n" + "\n".join(missing)
    assert not gone, "Remove from docs/troubleshooting.md:\n" + "\n".join(gone)
