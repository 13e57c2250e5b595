"""A classifier whose classes and files have hard names, measured once for all tests of the report."""

import pytest

from resfit import report
from resfit.tasks.classification import Classifier, fit
from tests.pictures import COLOURS, picture, tiny_body

#: Names that would harm a page that wrote them as they are, or matplotlib's mathematics.
CLASSES = {"blue": '<script>alert("x")</script>', "green": "$\\frac{green}$ & --> {{ 7 * 7 }}", "red": "red"}
EVIL = "<img src=x onerror=alert(1)> \u202e.png"


def write_named(folder, each, wrong=0):
    """Writes coloured squares under hard names; of each class some look like the next."""
    from PIL import Image

    names = list(COLOURS)
    for number, colour in enumerate(names):
        target = folder / CLASSES[colour].replace("/", "∕")
        target.mkdir(parents=True)
        for index in range(each):
            looks = names[(number + 1) % 3] if index < wrong else colour
            name = EVIL if index == 0 else f"{index:03}.png"
            Image.fromarray(picture(looks, 100 * number + index)).save(target / name)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_named(tmp_path_factory.mktemp("named") / "train", each=40)


@pytest.fixture(scope="session")
def tested(tmp_path_factory):
    return write_named(tmp_path_factory.mktemp("tested") / "images & more", each=25, wrong=3)


@pytest.fixture(scope="session")
def out(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "named.resfit"
    fit(data, model=tiny_body(), out=path)
    return path


@pytest.fixture(scope="session")
def findings(out, tested):
    return report.measure(Classifier.load(out), tested)


@pytest.fixture(scope="session")
def written(findings, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(findings, path, names=True)
    return path
