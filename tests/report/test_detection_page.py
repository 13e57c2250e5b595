"""The report page of a detection evaluation: curves, sizes, pictures with boxes, and the worst mistakes."""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resfit.data.boxes import scan_boxes
from resfit.report import task_page
from resfit.tasks.detection.detections import Detections
from resfit.tasks.detection.evaluation import evaluated


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Two pictures: a hit, a false alarm and a missed object; one picture is large."""
    folder = tmp_path_factory.mktemp("boxes")
    for name, size in (("patient-1.png", (1600, 1200)), ("patient-2.png", (100, 80))):
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    rows += ["patient-1.png,1600,1200,cat,100,100,500,500", "patient-2.png,100,80,cat,10,10,30,30"]
    (folder / "labels.csv").write_text("\n".join(rows))
    boxes = scan_boxes(folder / "labels.csv")

    def found(path, size, *rows):
        table = np.array(rows, np.float32).reshape(-1, 5)
        return Detections(path, table[:, :4], table[:, 4], np.zeros(len(table), np.int64), ("cat",), size)

    first, second = boxes.paths
    predicted = [
        found(first, (1200, 1600), (100, 100, 500, 500, 0.9), (900, 900, 1000, 1000, 0.8), (0, 0, 9, 9, 0.1)),
        found(second, (80, 100)),
    ]
    return evaluated(boxes, predicted, {"cat": 0.5}, intervals=False)


def written(result, tmp_path, **options):
    card = [("classes", "1: cat")]
    fitted = SimpleNamespace(task="detection", metrics=options.pop("metrics", {}), card=lambda: card)
    task_page.write(tmp_path / "report.html", fitted, result, source="cats", **options)
    return (tmp_path / "report.html").read_text("utf-8")


def test_sizes_curves_and_pictures_are_in_the_page(result, tmp_path):
    page = written(result, tmp_path)
    (sizes,) = [table for table in result.tables() if table.title == "by size of the boxes"]
    assert [(row[0], row[2]) for row in sizes.rows] == [("small", 1), ("medium", 0), ("large", 1)]
    assert [row[3] for row in sizes.rows] == ["0.000", "nothing to find", "1.000"]
    assert "cat: AP50 0.505" in page
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert "true boxes (green) and what is found (blue)" in headings
    assert {"mistakes: false alarms", "mistakes: missed objects"} <= set(headings)
    assert "patient-1.png: 1 true boxes, 2 found" in page
    assert "patient-1.png: cat, score 0.80" in page


def test_pictures_show_the_boxes_and_are_small(result, tmp_path):
    page = written(result, tmp_path)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    ]
    assert max(max(picture.size) for picture in pictures) == 800
    first = np.asarray(next(picture for picture in pictures if picture.size == (800, 600))).astype(int)
    # the true box at half its size, in green under the blue of what is found; the false alarm in blue
    blue = first[..., 2] - first[..., 0] > 60
    assert blue[500, 450:500].mean() > 0.8 or blue[450, 450:500].mean() > 0.8
    assert not blue[300:400, 600:].any()


def test_names_can_be_left_out(result, tmp_path):
    assert "patient" not in written(result, tmp_path, names=False)
    assert "patient" not in written(result, tmp_path, metrics={"notice": "Of medical images."})
