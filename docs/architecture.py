"""
Draw the layers of the package, and list its modules, from the imports in its source.

``make docs`` runs this at each build. Run it alone to check the layers, or to draw another checkout::

    python docs/architecture.py airflow_provider_stem docs/_generated
"""

from __future__ import annotations

import ast
import html
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# A module imports from its own layer and from the layers below it. Names cover the modules of a package; the longest
# name that fits decides. Modules at the root are listed without a leading underscore.
LAYERS: Mapping[str, Sequence[str]] = {
    "Command line": ("cli",),
    "Operators": (
        "plugins",
        "operators",
        "sensors",
        "triggers",
        "watchers",
        "notifiers",
        "retry_policies",
        "warehouse.operators",
        "iceberg.operators",
    ),
    "Airflow side": (
        *("hooks", "assets", "failures", "intervals", "ledger", "links"),
        *("arguments", "lineage", "loads", "mapping", "polling", "s3", "schedules", "stores", "watcher_state"),
        *("warehouse.connections", "warehouse.lineage", "iceberg.catalogs", "iceberg.lineage"),
        *("completeness.app", "completeness.publishing", "completeness.runs"),
    ),
    "Warehouse": ("warehouse", "iceberg", "completeness", "dbt"),
    "Streams": ("streams", "costs"),
    "API client": ("api",),
    "Common": ("", "connection_form", "disk", "errors", "text"),
    "Simulator": ("simulator",),
}
ORDER = list(LAYERS)
MAY_IMPORT_AIRFLOW = ("Command line", "Operators", "Airflow side")


class Modules(dict[str, Path]):
    """
    The modules of a package: path by name, without the name of the package.

    :param package: folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self.package = package.name
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            self[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def imports(self, name: str) -> Iterator[str]:
        """Iterate over the full names that a module imports when it runs, also inside functions."""
        yield from self._imports_of(ast.parse(self[name].read_text()))

    def own_imports(self, name: str) -> set[str]:
        """Return the modules of this package that a module imports."""
        prefix = f"{self.package}."
        own = {
            one.removeprefix(prefix) if one.startswith(prefix) else ""
            for one in self.imports(name)
            if self._is_own(one)
        }
        return own - {name}

    def summary(self, name: str) -> str:
        """Return the first line of a module's docstring."""
        docstring = ast.get_docstring(ast.parse(self[name].read_text())) or ""
        return docstring.partition("\n")[0]

    def _is_own(self, imported: str) -> bool:
        return imported == self.package or imported.startswith(f"{self.package}.")

    def _imports_of(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield name if name.removeprefix(f"{self.package}.") in self else module
        for child in ast.iter_child_nodes(node):
            yield from self._imports_of(child)


def layer_of(module: str) -> str:
    """
    Return the layer of a module.

    :raises ValueError: ``LAYERS`` has no entry that fits.
    """
    names = {name: layer for layer, listed in LAYERS.items() for name in listed}
    bare = module.removeprefix("_")
    while bare not in names and "." in bare:
        bare = bare.rpartition(".")[0]
    if bare not in names:
        raise ValueError(f"Module {module!r} is in no layer. Add it to LAYERS in docs/architecture.py.")
    return names[bare]


def violations(modules: Modules) -> Iterator[str]:
    """Iterate over the imports that break a layer, each as one line."""
    for name in modules:
        layer = layer_of(name)
        for imported in sorted(modules.own_imports(name)):
            below = layer_of(imported)
            is_of_simulator = "Simulator" in (below, layer) and layer not in ("Simulator", "Command line")
            if ORDER.index(below) < ORDER.index(layer) or is_of_simulator:
                yield f"{name} ({layer}) imports {imported} ({below})"
        if layer not in MAY_IMPORT_AIRFLOW and any(one.partition(".")[0] == "airflow" for one in modules.imports(name)):
            yield f"{name} ({layer}) imports airflow"


_CHIP, _GAP, _LEFT, _RIGHT, _RAIL = 24, 44, 132, 620, 27
_MIDDLE = (_LEFT + _RIGHT) / 2


def draw(modules: Modules) -> str:
    """Return the layers as an SVG that takes its colours from the page."""
    shapes: list[str] = []
    bands: dict[str, tuple[float, float]] = {}
    top = 1.0
    for layer in ORDER:
        rows = _rows(sorted(name or modules.package for name in modules if layer_of(name) == layer))
        height = len(rows) * (_CHIP + 4) + 12
        bands[layer] = (top, top + height)
        shapes += _band(layer, rows, top, height)
        top += height + _GAP
    edges = Counter((layer_of(name), layer_of(one)) for name in modules for one in modules.own_imports(name))
    rails: list[tuple[str, str]] = []
    for upper, lower in sorted(edges, key=lambda edge: ORDER.index(edge[1]) - ORDER.index(edge[0])):
        if ORDER.index(lower) - ORDER.index(upper) > 1:
            rails.append((upper, lower))  # the shortest first, so that the longest is outside
        elif upper != lower:
            line = f"M{_MIDDLE} {bands[upper][1]:.0f} V{bands[lower][0] - 8:.0f}"
            shapes += _arrow(line, edges[upper, lower], _MIDDLE + 10, bands[upper][1] + _GAP / 2 + 4)
    for number, (upper, lower) in enumerate(rails):
        x = _RIGHT + (number + 1) * _RAIL
        start, stop = _slot(rails, number, upper, bands[upper]), _slot(rails, number, lower, bands[lower])
        line = f"M{_RIGHT} {start:.0f} H{x} V{stop:.0f} H{_RIGHT + 8}"
        shapes += _arrow(line, edges[upper, lower], x + 4, (start + stop) / 2)
    right = _RIGHT + (len(rails) + 1) * _RAIL
    return (
        f'<svg class="architecture" viewBox="0 0 {right} {top - _GAP + 1:.0f}" role="img" '
        'aria-label="Layers of the package, and how many imports lead from each to each other">\n'
        '<marker id="tip" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="9" markerHeight="9" orient="auto" '
        'markerUnits="userSpaceOnUse"><path d="M0 0 L8 4 L0 8 z"/></marker>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _slot(rails: Sequence[tuple[str, str]], number: int, layer: str, band: tuple[float, float]) -> float:
    """Return the height at which a rail meets a band, in an order in which few lines cross."""
    incoming = [one for one, (_, lower) in enumerate(rails) if lower == layer]
    outgoing = [one for one, (upper, _) in enumerate(rails) if upper == layer]
    slots = incoming + outgoing[::-1]
    return band[0] + (band[1] - band[0]) * (slots.index(number) + 1) / (len(slots) + 1)


def _arrow(line: str, count: int, x: float, y: float) -> Iterator[str]:
    yield f'<path class="edge" d="{line}" stroke-width="{1 + count**0.5 / 4:.1f}"/>'
    yield f'<text class="count" x="{x:.0f}" y="{y:.0f}">{count}</text>'


def _rows(names: Sequence[str]) -> list[list[tuple[float, float, str]]]:
    """Return rows of ``(x, width, name)`` that fit into a band."""
    rows: list[list[tuple[float, float, str]]] = [[]]
    x = _LEFT + 8.0
    for name in names:
        width = 7.0 * len(name) + 12
        if x + width > _RIGHT - 8:
            rows.append([])
            x = _LEFT + 8.0
        rows[-1].append((x, width, name))
        x += width + 4
    return rows


def _band(layer: str, rows: list[list[tuple[float, float, str]]], top: float, height: float) -> Iterator[str]:
    yield f'<rect class="band" x="1" y="{top:.0f}" width="{_RIGHT - 1}" height="{height:.0f}" rx="6"/>'
    yield f'<text class="layer" x="14" y="{top + 25:.0f}">{layer}</text>'
    for number, row in enumerate(rows):
        y = top + 8 + number * (_CHIP + 4)
        for x, width, name in row:
            yield f'<rect class="chip" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{_CHIP}" rx="4"/>'
            yield f'<text class="module" x="{x + 6:.0f}" y="{y + 16:.0f}">{html.escape(name)}</text>'


def table(modules: Modules) -> str:
    """Return the modules with their summaries and imports, as a Markdown table for each layer."""
    lines: list[str] = []
    for layer in ORDER:
        lines += ["", f"**{layer}**", "", "| module | what it is for | imports |", "|---|---|---|"]
        for name in modules:
            if layer_of(name) == layer:
                others = sorted(one for one in modules.own_imports(name) if layer_of(one) != "Common")
                imported = ", ".join(f"`{one}`" for one in others)
                lines.append(f"| `{name or modules.package}` | {modules.summary(name)} | {imported} |")
    return "\n".join(lines) + "\n"


def write(package: Path, folder: Path) -> None:
    """
    Write ``architecture.svg`` and ``modules.md``.

    :param package: folder of the package.
    :param folder: where to write; created if it is missing.
    :raises ValueError: an import breaks a layer, or a module is in none.
    """
    modules = Modules(package)
    if found := list(violations(modules)):
        raise ValueError("Imports break the layers in docs/architecture.py:\n" + "\n".join(found))
    folder.mkdir(exist_ok=True)
    (folder / "architecture.svg").write_text(draw(modules))
    (folder / "modules.md").write_text(table(modules))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
