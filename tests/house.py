"""What a package looks like from outside, read without importing it: files, lengths, imports.

`python -m tests.house [path of a package]` prints a row for each folder, and what is longest.
"""

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1] / "lrpfunc"


class Module(NamedTuple):
    """A file. `name` is dotted and begins with the package's; that of a folder's contents page is the folder's."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def folder(self) -> str:
        """Where it is or, for a file that lies in no folder, the file: "rules", "errors"; "" for the contents page."""
        return self.name.split(".")[1] if "." in self.name else ""


class Function(NamedTuple):
    module: str
    name: str
    lines: int
    decorators: tuple[str, ...]


@functools.cache
def modules(root: Path = ROOT) -> list[Module]:
    return [_module(root, path) for path in sorted(root.rglob("*.py"))]


def _module(root: Path, path: Path) -> Module:
    text = path.read_text()
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(text), len(text.splitlines()))


def folders(root: Path = ROOT) -> list[Path]:
    """All that hold Python files, but for the package itself."""
    return sorted({path.parent for path in root.rglob("*.py")} - {root})


def functions(module: Module) -> Iterator[Function]:
    """All of them, methods and inner ones too. Decorators do not count towards the length."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = tuple(ast.unparse(decorator) for decorator in node.decorator_list)
            yield Function(module.name, node.name, node.end_lineno - node.lineno + 1, decorators)


# -- imports ----------------------------------------------------------------------------------------------------------


def imports(module: Module, names: set[str], lazy: bool = True) -> set[str]:
    """The modules of the package that a module imports, but for those that only a type checker does.

    `names`: of the package's modules. `lazy`: also inside functions.
    """
    found = set()
    for node in _import_nodes(module.tree, lazy):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            origin = _origin(module, node)
            found.update(f"{origin}.{a.name}" if f"{origin}.{a.name}" in names else origin for a in node.names)
    return found & names - {module.name}


def packages(module: Module) -> set[str]:
    """What a module imports in whole, also inside functions: the first names, its own package's among them."""
    found = set()
    for node in _import_nodes(module.tree, lazy=True):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [_origin(module, node)]
        found.update(name.partition(".")[0] for name in names)
    return found


def _import_nodes(node: ast.AST, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _import_nodes(other, lazy)
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _import_nodes(child, lazy)


def _origin(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if module.path.name != "__init__.py":
        package = package[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A way through a graph that ends where it began, or nothing."""
    done: set[str] = set()

    def search(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for after in sorted(graph.get(node, ())):
                if found := search(after, [*way, node]):
                    return found
            done.add(node)
        return []

    for node in sorted(graph):
        if found := search(node, []):
            return found
    return []


# -- the table --------------------------------------------------------------------------------------------------------


def table(root: Path) -> list[tuple[str, ...]]:
    """Rows for the folders and one for all: files, lines, the longest file and the longest function."""
    found = modules(root)
    rows = []
    for folder in [*sorted({m.folder if m.path.parent != root else "" for m in found}), None]:
        inside = [m for m in found if folder is None or (m.folder if m.path.parent != root else "") == folder]
        longest = max(inside, key=lambda m: m.lines)
        where = f"{longest.path.relative_to(root)} {longest.lines}"
        defined = [f for m in inside for f in functions(m)]
        most = max(defined, key=lambda f: f.lines, default=None)
        function = f"{most.module.removeprefix(root.name + '.')}.{most.name} {most.lines}" if most else "-"
        name = "all" if folder is None else folder or "."
        rows.append((name, str(len(inside)), str(sum(m.lines for m in inside)), where, function))
    return rows


def main(root: Path) -> None:
    rows = [("folder", "files", "lines", "longest file", "longest function"), *table(root)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:3], widths[1:3]), *map(str.ljust, row[3:], widths[3:])]
        print("  ".join(cells).rstrip())
    over = [m for m in modules(root) if m.lines > 400]
    long = [f for m in modules(root) for f in functions(m) if f.lines > 50]
    print(f"{len(over)} files above 400 lines, {len(long)} functions above 50")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
