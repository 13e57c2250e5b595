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
