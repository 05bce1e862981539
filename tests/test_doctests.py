"""Every example in every docstring of preflab runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import preflab

SOURCE = Path(preflab.__file__).parent


def module_names() -> list[str]:
    def fail(name: str) -> None:
        raise ImportError(f"{name} cannot be imported")

    found = pkgutil.walk_packages(preflab.__path__, prefix="preflab.", onerror=fail)
    return ["preflab", *(module.name for module in found)]


def test_every_file_is_in_a_package() -> None:
    """Where `__init__.py` is forgotten, pkgutil walks past the folder, and its examples would never run."""
    files = {path.relative_to(SOURCE.parent).with_suffix("") for path in SOURCE.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert names == set(module_names())


# `__main__` is a program: importing it runs it.
@pytest.mark.parametrize("name", [name for name in module_names() if not name.endswith(".__main__")])
def test_examples(name: str) -> None:
    # From the source, as doctest's own finder passes over functions that the type checker has wrapped.
    module = importlib.import_module(name)
    path = Path(str(module.__file__))
    runner = doctest.DocTestRunner()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node, clean=False)
        if text is not None:
            where, line = getattr(node, "name", name), node.body[0].lineno - 1
            runner.run(doctest.DocTestParser().get_doctest(text, dict(vars(module)), where, str(path), line))
    assert runner.failures == 0, f"{runner.failures} of {runner.tries} examples failed, see above"
