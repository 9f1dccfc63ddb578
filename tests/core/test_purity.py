"""The core is pure: bytes in, bytes out. What it imports and how it is written are read from its source.

Imports go one way: the core knows nothing of the shell, the shell nothing of its admin, and that nothing of the command
line.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import coalesce.core

CORE = Path(coalesce.core.__file__).parent
MODULES = sorted(CORE.glob("*.py"))
# Neither I/O nor a clock nor global state.
PURE = {
    "__future__", "abc", "collections", "collections.abc", "contextlib", "dataclasses", "enum", "functools",
    "itertools", "operator", "re", "string", "struct", "types", "typing",
}  # fmt: skip
# Built-in functions that reach outside.
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, for types alone as well."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            found.add(node.module or "")
    return found


def test_the_core_is_found() -> None:
    assert {"resp.py", "lane.py", "session.py", "exchange.py", "commands.py", "errors.py"} <= {
        path.name for path in MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_imports(path: Path) -> None:
    allowed = PURE | {"hiredis"} if path.name == "resp.py" else PURE
    foreign = {name for name in imports(path) - allowed if name.split(".")[:2] != ["coalesce", "core"]}
    assert not foreign


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_nothing_waits(path: Path) -> None:
    waiting = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
    assert not [node.lineno for node in ast.walk(tree(path)) if isinstance(node, waiting)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_nothing_reaches_outside(path: Path) -> None:
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in IMPURE_CALLS]


@pytest.mark.parametrize(("of", "above"), [(".", {"admin", "cli"}), ("admin", {"cli"})], ids=["the shell", "the admin"])
def test_nobody_knows_who_stands_above(of: str, above: set[str]) -> None:
    modules = [path for path in (CORE.parent / of).glob("*.py") if path.name != "__main__.py"]
    assert len(modules) > 5
    for path in modules:
        named = {name.split(".")[1] for name in imports(path) if name.startswith("coalesce.")}
        assert not named & above, path.name
