import ast
from collections import defaultdict
from pathlib import Path

import pytest

import resfit

SOURCE = Path(resfit.__file__).parent


@pytest.fixture(scope="module")
def graph():
    grimp = pytest.importorskip("grimp")
    return grimp.build_graph("resfit", cache_dir=None)


def test_imports_have_no_circle(graph):
    """Imports inside functions and for annotations count too."""
    below = {module: graph.find_modules_directly_imported_by(module) - {"resfit"} for module in graph.modules}
    del below["resfit"]  # the package itself holds the version and the lazy names
    while removed := [module for module, imported in below.items() if not imported & below.keys()]:
        for module in removed:
            del below[module]
    assert {module: sorted(imported & below.keys()) for module, imported in below.items()} == {}


def test_no_public_class_name_occurs_twice():
    places = defaultdict(list)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(SOURCE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


#: Where modules of resfit may be imported by their names: lazy names, old names, and registries with a home.
BY_NAME = {"__init__.py", "cli/__init__.py", "_moved.py", "registries.py"}


def test_modules_are_imported_by_statements():
    """Otherwise the graph of imports, which the floors and circles are checked on, would not show them."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            if name in ("import_module", "__import__", "resolve_name", "load_module", "run_module"):
                found.add(path.relative_to(SOURCE).as_posix())
    assert found <= BY_NAME


def test_what_is_registered_does_not_know_what_loads_it(graph):
    for package in ("resfit.weights.formats", "resfit.weights.conventions"):
        for loader in ("resfit.weights.load", "resfit.zoo"):
            assert not graph.direct_import_exists(importer=package, imported=loader, as_packages=True)
