"""The report: what it says is what was measured, and no name in it can do harm."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from resfit import report
from resfit.cli import main
from resfit.data.thumbnails import jpeg
from resfit.errors import ArgumentError
from resfit.report import checklists, plots
from resfit.report.pictures import gallery
from resfit.report.templates import address, plain
from resfit.tasks.classification import Classifier, fit
from tests.pictures import tiny_body, write_folder


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.scripts = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action"):
                self.addresses.append(value)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_says_what_was_measured(findings, written):
    text = " ".join("".join(Page(written.read_text("utf-8")).text).split())
    overall = findings.figures.overall
    assert overall["accuracy"].value == 66 / 75
    assert "88.0 %" in text
    for name in ("balanced_accuracy", "mcc", "auroc_macro", "log_loss", "ece"):
        figure = overall[name]
        assert f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})" in text, name
    assert findings.judged.images.fingerprint in text
    assert findings.classifier.fingerprint in text
    assert f"{findings.classifier.temperature:.3f}" in text
    assert text.count(checklists.OPEN) > 30  # what a run cannot know is said to be open
    assert "2000 resamples of images" in text


def test_no_name_becomes_markup(findings, written):
    text = written.read_text("utf-8")
    page = Page(text)
    assert page.scripts == 1
    visible = "".join(page.text)
    assert '<script>alert("x")<∕script>' in visible
    assert "{{ 7 * 7 }}" in visible
    assert "\\u202e" in visible
    assert "\u202e" not in text
    assert page.tags.count("img") == text.count("<img ")
    assert all(address.startswith(("data:", "#")) for address in page.addresses), page.addresses[:5]
    assert "http://www.w3.org" in text  # of SVG, no address that is fetched
    assert not re.findall(r"https?://(?!www\.w3\.org)[^\s\"'<]*", text)


def test_names_are_left_out_where_images_belong_to_groups(findings):
    text = report.render(findings, names=False)
    assert "000.png" not in text
    assert "onerror" not in text
    assert "image 1" in text


def test_images_behind_the_cells(findings):
    shown = gallery(findings)
    confusion = findings.evaluation.confusion
    assert {key: cell.count for key, cell in shown.cells.items()} == {
        (i, j): confusion[i, j] for i in range(3) for j in range(3) if confusion[i, j]
    }
    for (row, column), cell in shown.cells.items():
        assert len(cell.shown) == min(cell.count, 4 if row == column else 16)
        for item in cell.shown:
            assert (item.truth, item.said) == (findings.judged.classes[row], findings.judged.classes[column])
            assert item.source.startswith("data:image/jpeg;base64,")
        sure = [item.probability for item in cell.shown]
        assert sure == sorted(sure, reverse=True)
    assert len(shown.mistakes) == 9
    assert all(item.truth != item.said for item in shown.mistakes)
    assert all(item.truth == item.said for item in shown.doubts)
    guess = findings.judged.probabilities.argmax(axis=1)
    sure = findings.judged.probabilities.max(axis=1)
    hits = np.sort(sure[guess == findings.judged.truth])
    assert [item.probability for item in shown.doubts] == pytest.approx(hits[:12], abs=1e-6)


def test_explanations_stand_beside_the_images(findings):
    shown = gallery(findings)
    assert shown.explained.startswith("Grad-CAM")
    assert all(item.overlay.startswith("data:image/jpeg") for item in (*shown.mistakes, *shown.doubts))
    first = shown.mistakes[0]
    path = findings.judged.images.root / first.name.replace("\\u202e", "\u202e")
    (explained,) = findings.classifier.explain(path)
    assert explained.target == first.said
    assert first.overlay == address(jpeg(explained.overlay))
    assert gallery(findings, explain=False).note == "not asked for"


def test_training_images_are_noticed(out, data):
    found = report.measure(Classifier.load(out), data)
    images = found.classifier.metrics["images"]
    assert found.familiar == len(found.judged.images) - images["test"] >= images["train"]
    (said,) = found.classifier.evaluate(data).notes
    assert said.startswith(f"{found.familiar} of {len(found.judged.images)} images")
    assert "were used to fit the classifier</strong>" in report.render(found)


def test_pictures_differ_in_their_identifiers(findings):
    svgs = plots.unique([plots.roc(findings), plots.precision_recall(findings)])
    names = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs]
    assert not set(names[0]) & set(names[1])
    for svg, own in zip(svgs, names, strict=True):
        used = {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'href="#([^"]+)"', svg)}
        assert used
        assert used <= set(own)
        assert "currentColor" in svg


def test_the_command_writes_a_report(out, tested, tmp_path, capsys):
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    page = tmp_path / "sub" / "report.html"
    arguments = ["evaluate", out, tested, "--report", page, "--foreign", tmp_path, "--json", "--no-names"]
    with pytest.raises(SystemExit) as stopped:
        main.run([str(argument) for argument in arguments])
    text, errors = capsys.readouterr()
    assert not stopped.value.code, errors
    found = json.loads(text)
    assert found["accuracy"] == 66 / 75
    assert found["foreign"]["count"] == 6
    assert found["figures"]["overall"]["mcc"]["low"] < found["figures"]["overall"]["mcc"]["value"]
    assert {row["asked"] for row in found["prediction_sets"]} == {0.8, 0.9, 0.95}
    assert "Out-of-distribution images" in page.read_text("utf-8")
    with pytest.raises(SystemExit) as stopped:
        main.run(["evaluate", str(out), str(tested), "--specificity", "2"])
    assert stopped.value.code == 2


def test_reports_of_other_tasks(tmp_path):
    """Two classes, several labels, groups and columns: each has what belongs to it."""
    folder = write_folder(tmp_path / "two", each=30, colours=("blue", "red"))
    rows = ["path,label,group,site"]
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        rows.append(f"{path.relative_to(tmp_path)},{path.parent.name},Patient Miller {number // 3},{'NS'[number % 2]}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    two = fit(table, model=tiny_body())
    found = report.measure(two, table, columns=["site"], cost_ratio=5)
    assert found.delong.value == pytest.approx(found.figures.per_class["red"]["auroc"].value)
    assert found.operating.sensitivity.value >= 0.9
    assert found.figures.units == 20
    text = report.render(found)
    for part in ("DeLong", "Operating point for red", "By site", "20 groups"):
        assert part in text
    assert "Miller" not in text
    assert ".png" not in text  # files often bear the names of patients
    multilabel = tmp_path / "several.csv"
    multilabel.write_text("\n".join([rows[0].replace(",site", "")] + [
        f"{row.split(',')[0]},{'red;warm' if ',red,' in row else 'blue'},{row.split(',')[2]}" for row in rows[1:]
    ]))  # fmt: skip
    labelled = fit(multilabel, model=tiny_body(), label_separator=";")
    found = report.measure(labelled, multilabel)
    text = report.render(found)
    assert "all labels right" in text
    assert "data-cell" not in text.split("<script>")[0]
    assert found.sets == ()
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(ArgumentError, match="specificity"):
        report.measure(two, table, specificity=1.0)


def test_text_shows_what_hides():
    assert plain("a\u202eb\x00\n") == "a\\u202eb\\x00\\n"
    assert plain("\udcff") == "\\udcff"


def test_commands_say_what_they_doubt(out, tested, tmp_path, capsys):
    from PIL import Image

    foreign = tmp_path / "foreign.png"
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(foreign)
    like = sorted(tested.glob("red/*.png"))[10]
    with pytest.raises(SystemExit) as stopped:
        main.run(["predict", str(out), str(foreign), str(like), "--coverage", "0.9"])
    text, errors = capsys.readouterr()
    assert not stopped.value.code
    assert "one of" in text
    warned = [line for line in errors.splitlines() if line.startswith("Unlike the training images")]
    assert [line.rsplit(": ", 1)[1] for line in warned] == [str(foreign)]
    with pytest.raises(SystemExit):
        main.run(["predict", str(out), str(like), "--coverage", "0.9", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["prediction_set"][0] == found["label"] == "red"
    assert found["unlike_training"] is False
    assert 0 < found["unlikeness"] < 1
