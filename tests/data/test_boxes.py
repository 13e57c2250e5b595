"""Boxes in every format: the same set read alike, and what is left out, turned or refused."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resfit.data.boxes import REASONS, SkippedBoxesError, find_box_formats, scan_boxes
from resfit.data.image_dimensions import read_dimensions
from resfit.data.split import split
from resfit.errors import ArgumentError, DataError

# image: split, width, height, boxes; the second has none
SCENE = {
    "a": ("train", 64, 48, [("cat", 4, 6, 20, 30), ("dog", 30, 8, 60, 40)]),
    "b": ("train", 50, 40, []),
    "c": ("val", 40, 80, [("dog", 0, 0, 40, 80)]),
    "d": ("test", 32, 32, [("cat", 1, 2, 31, 30), ("cat", 8, 8, 16, 24), ("dog", 2, 2, 10, 10)]),
}
SPLIT_FOLDERS = {"train": "train", "val": "valid", "test": "test"}


def draw(path, width, height, orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (width, height))
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    image.save(path, exif=exif)


def voc_xml(name, width, height, found, database="Unknown", difficult=0):
    objects = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in found
    )
    return (
        f"<annotation><filename>{name}</filename><source><database>{database}</database></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def yolo_text(width, height, found, names=("cat", "dog")):
    return "".join(
        f"{names.index(label)} {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} "
        f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
        for label, x1, y1, x2, y2 in found
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def coco(rows, name_of=lambda stem, part: f"{stem}.jpg", ids=(7, 90)):
    """A COCO file with gaps in its ids and dog before cat."""
    numbers = {"dog": ids[0], "cat": ids[1]}
    found = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    for position, (stem, (part, width, height, boxes)) in enumerate(rows.items()):
        key = 1000 + 13 * position
        found["images"].append({"id": key, "file_name": name_of(stem, part), "width": width, "height": height})
        for label, x1, y1, x2, y2 in boxes:
            found["annotations"].append(
                {"id": len(found["annotations"]) + 5, "image_id": key, "category_id": numbers[label], "iscrowd": 0}
                | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [[x1, y1, x2, y2]], "area": 9}
            )
    return found


def part_of(part):
    return {stem: row for stem, row in SCENE.items() if row[0] == part}


def put_images(root, place):
    for stem, (part, width, height, _) in SCENE.items():
        draw(root / place.format(part=SPLIT_FOLDERS[part], stem=stem), width, height)


def labelimg(root):
    put_images(root, "{part}/{stem}.jpg")
    for stem, (part, width, height, found) in SCENE.items():
        write(root / SPLIT_FOLDERS[part] / f"{stem}.xml", voc_xml(f"C:\\old\\{stem}.jpg", width, height, found))


def voc_devkit(root):
    put_images(root, "JPEGImages/{stem}.jpg")
    for stem, (part, width, height, found) in SCENE.items():
        write(root / "Annotations" / f"{stem}.xml", voc_xml(f"{stem}.jpg", width, height, found))
        with (root / "lists.tmp").open("a") as file:
            file.write(f"{part} {stem}\n")
    for part in SPLIT_FOLDERS:
        write(root / "ImageSets/Main" / f"{part}.txt", "".join(f"{stem}\n" for stem in part_of(part)))


def coco_instances(root):
    for part in SPLIT_FOLDERS:
        for stem, (_, width, height, _) in part_of(part).items():
            draw(root / f"{part}2017" / f"{stem}.jpg", width, height)
        write(
            root / "annotations" / f"instances_{part}2017.json",
            coco(part_of(part), ids={"val": (3, 4)}.get(part, (7, 90))),
        )
        write(root / "annotations" / f"captions_{part}2017.json", {"images": [], "annotations": [{"caption": "a"}]})


def roboflow_coco(root):
    put_images(root, "{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        content = coco(part_of(part))
        content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        for item in content["categories"][1:]:
            item["supercategory"] = "pets"
        write(root / folder / "_annotations.coco.json", content)


def ultralytics(root):
    put_images(root, "images/{part}/{stem}.jpg")
    for stem, (part, width, height, found) in SCENE.items():
        if found:
            write(root / "labels" / SPLIT_FOLDERS[part] / f"{stem}.txt", yolo_text(width, height, found))
    write(
        root / "data.yaml",
        "path: .\ntrain: images/train\nval: images/valid\ntest: images/test\nnames:\n  0: cat\n  1: dog\n",
    )


def roboflow_yolo(root):
    put_images(root, "{part}/images/{stem}.jpg")
    for stem, (part, width, height, found) in SCENE.items():
        write(root / SPLIT_FOLDERS[part] / "labels" / f"{stem}.txt", yolo_text(width, height, found))
    write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']\n",
    )


def darknet(root):
    put_images(root, "obj_train_data/{stem}.jpg")
    for stem, (_, width, height, found) in SCENE.items():
        write(root / "obj_train_data" / f"{stem}.txt", yolo_text(width, height, found))
    for part in SPLIT_FOLDERS:
        write(root / f"{part}.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in part_of(part)))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\nnames = data/obj.names\ntrain = data/train.txt\n")


def table_rows(part):
    rows = []
    for stem, (_, width, height, found) in part_of(part).items():
        rows += [(f"{stem}.jpg", width, height, label, *box) for label, *box in found]
        if not found:
            rows.append((f"{stem}.jpg", width, height, "", "", "", "", ""))
    return rows


def csv_files(root):
    put_images(root, "images/{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        lines = [
            "filename,width,height,class,xmin,ymin,xmax,ymax",
            *(",".join(map(str, row)) for row in table_rows(part)),
        ]
        write(root / "images" / f"{folder}_labels.csv", "\n".join(lines) + "\n")


def one_csv(root):
    put_images(root, "images/{part}/{stem}.jpg")
    lines = ["path;label;xmin;ymin;xmax;ymax;split"]
    for part, folder in SPLIT_FOLDERS.items():
        for name, _, _, *rest in table_rows(part):
            lines.append(";".join(map(str, (f"images\\{folder}\\{name}", *rest, part))))
    write(root / "boxes.csv", "\n".join(lines) + "\n")


def cvat(root):
    put_images(root, "images/{part}/{stem}.jpg")
    images = ""
    for stem, (part, width, height, found) in SCENE.items():
        shapes = "".join(
            f'<box label="{label}" source="manual" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
            for label, x1, y1, x2, y2 in found
        )
        images += f'<image id="1" name="{stem}.jpg" subset="{part}" width="{width}" height="{height}">{shapes}</image>'
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("dog", "cat"))
    write(
        root / "annotations.xml",
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>",
    )


def label_studio(root):
    put_images(root, "{part}/{stem}.jpg")
    tasks = []
    for stem, (_, width, height, found) in SCENE.items():
        results = [
            {"type": "rectanglelabels", "to_name": "image", "original_width": width, "original_height": height}
            | {"value": {"x": x1 / width * 100, "y": y1 / height * 100, "rectanglelabels": [label], "rotation": 0}}
            | {}
            for label, x1, y1, x2, y2 in found
        ]
        for result, (_, x1, y1, x2, y2) in zip(results, found, strict=True):
            result["value"] |= {"width": (x2 - x1) / width * 100, "height": (y2 - y1) / height * 100}
        tasks.append(
            {"id": 1, "data": {"image": f"/data/upload/3/1a2b3c4d-{stem}.jpg"}, "annotations": [{"result": results}]}
        )
    tasks.append({"id": 9, "data": {"image": "/data/upload/3/none.jpg"}, "annotations": []})
    write(root / "project.json", tasks)


def labelimg_yolo(root):
    put_images(root, "{part}/{stem}.jpg")
    for stem, (part, width, height, found) in SCENE.items():
        write(root / SPLIT_FOLDERS[part] / f"{stem}.txt", yolo_text(width, height, found))
        write(root / SPLIT_FOLDERS[part] / "classes.txt", "cat\ndog\n")


def label_studio_yolo(root):
    for stem, (part, width, height, found) in SCENE.items():
        draw(root / part / "images" / f"{stem}.jpg", width, height)
        write(root / part / "labels" / f"{stem}.txt", yolo_text(width, height, found))
    write(root / "classes.txt", "cat\ndog")
    write(root / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {}})


def create_ml(root):
    put_images(root, "{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        items = []
        for stem, (_, _, _, found) in part_of(part).items():
            shapes = [
                {
                    "label": label,
                    "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1},
                }
                for label, x1, y1, x2, y2 in found
            ]
            items.append({"image": f"{stem}.jpg", "annotations": shapes})
        write(root / folder / "_annotations.createml.json", items)


def labelme(root):
    put_images(root, "{part}/{stem}.jpg")
    for stem, (part, width, height, found) in SCENE.items():
        shapes = [
            {"label": label, "shape_type": "rectangle", "points": [[x2, y2], [x1, y1]]}
            for label, x1, y1, x2, y2 in found
        ]
        content = {"shapes": shapes, "imagePath": f"{stem}.jpg", "imageWidth": width, "imageHeight": height}
        write(root / SPLIT_FOLDERS[part] / f"{stem}.json", content)


def csv_of_sizes(root):
    """Left, top, width and height; and the centre in one of the files."""
    put_images(root, "{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        centred = part == "val"
        lines = ["image,label,x_center,y_center,width,height" if centred else "image,x,y,w,h,label"]
        for name, _, _, label, *box in table_rows(part):
            x1, y1, x2, y2 = box if label else ("", "", "", "")
            if label and centred:
                lines.append(f"{name},{label},{(x1 + x2) / 2},{(y1 + y2) / 2},{x2 - x1},{y2 - y1}")
            elif label:
                lines.append(f"{name},{x1},{y1},{x2 - x1},{y2 - y1},{label}")
            else:
                lines.append(f"{name},,,,,")
        write(root / f"{folder}_labels.csv", "\n".join(lines) + "\n")


def csv_without_header(root):
    """As Keras RetinaNet has it."""
    put_images(root, "{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        lines = [",".join(map(str, (name, *box, label))) for name, _, _, label, *box in table_rows(part)]
        write(root / f"{folder}.csv", "\n".join(lines) + "\n")


def via_shapes(found):
    """Rectangles, and the first box of an image as an outline."""
    shapes = []
    for place, (label, x1, y1, x2, y2) in enumerate(found):
        shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        if place == 0:
            middle = (y1 + y2) / 2
            shape = {"name": "polygon", "all_points_x": [x1, x2, x1], "all_points_y": [y1, middle, y2]}
        shapes.append((shape, {"class": label, "note": "" if place else "seen"}))
    return shapes


def via(root):
    put_images(root, "{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        images = {}
        for stem, (_, _, _, found) in part_of(part).items():
            regions = [{"shape_attributes": shape, "region_attributes": own} for shape, own in via_shapes(found)]
            images[f"{stem}.jpg100"] = {
                "filename": f"{stem}.jpg",
                "size": 100,
                "regions": regions,
                "file_attributes": {},
            }
        content = {"_via_settings": {}, "_via_img_metadata": images} if part == "train" else images
        write(root / folder / "via_region_data.json", content)


def via_csv(root):
    put_images(root, "{part}/{stem}.jpg")
    for part, folder in SPLIT_FOLDERS.items():
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(
            ["filename", "file_size", "region_count", "region_id", *("region_shape_attributes", "region_attributes")]
        )
        for stem, (_, _, _, found) in part_of(part).items():
            for place, (shape, own) in enumerate(via_shapes(found) or [({}, {})]):
                rows.writerow([f"{stem}.jpg", 100, len(found), place, json.dumps(shape), json.dumps(own)])
        write(root / folder / "via_region_data.csv", text.getvalue())


WRITERS = {
    "voc": (labelimg, voc_devkit),
    "coco": (coco_instances, roboflow_coco),
    "yolo": (ultralytics, roboflow_yolo, darknet, labelimg_yolo, label_studio_yolo),
    "csv": (csv_files, one_csv, csv_of_sizes, csv_without_header),
    "cvat": (cvat,),
    "label-studio": (label_studio,),
    "create-ml": (create_ml,),
    "labelme": (labelme,),
    "via": (via, via_csv),
}


def by_name(found):
    return {
        path.stem: (
            found.splits[row],
            sorted(
                (found.classes[label], *map(float, box)) for box, label in zip(*found.boxes_of(row)[:2], strict=True)
            ),
        )
        for row, path in enumerate(found.paths)
    }


@pytest.mark.parametrize(("name", "writer"), [(name, writer) for name, some in WRITERS.items() for writer in some])
def test_every_layout_gives_the_same_set(tmp_path, name, writer):
    writer(tmp_path)
    assert find_box_formats(tmp_path) == [name]
    found = scan_boxes(tmp_path)
    assert found.format == name
    assert found.skipped_counts == {}
    for stem, (part, boxes) in by_name(found).items():
        wanted_part, _, _, wanted = SCENE[stem]
        assert part == wanted_part, stem
        assert [label for label, *_ in boxes] == sorted(label for label, *_ in wanted), stem
        np.testing.assert_allclose(
            [box[1:] for box in boxes], [box[1:] for box in sorted(wanted)] if wanted else [], atol=1e-4
        )
    assert len(found) == 4  # images without boxes are negatives
    assert found.counts() == {"cat": 3, "dog": 3}
    assert found.sizes.tolist() == [list(SCENE[path.stem][2:0:-1]) for path in found.paths]
    # where a file lists the classes, in its order
    assert found.classes == (("dog", "cat") if name in ("coco", "cvat") else ("cat", "dog"))


def test_a_dataframe_and_named_columns(tmp_path):
    put_images(tmp_path, "{stem}.jpg")
    rows = [row for part in SPLIT_FOLDERS for row in table_rows(part)]
    frame = pd.DataFrame(rows, columns=["img", "width", "height", "what", "x1", "y1", "x2", "y2"])
    found = scan_boxes(frame.replace("", np.nan), images=tmp_path, columns={"path": "img", "label": "what"})
    assert found.counts() == {"cat": 3, "dog": 3}
    assert len(found) == 4
    with pytest.raises(DataError, match="none for 'path'"):
        scan_boxes(frame, images=tmp_path)
    with pytest.raises(ArgumentError, match="a key of columns must be one of"):
        scan_boxes(frame, images=tmp_path, columns={"paht": "img"})


@pytest.mark.parametrize(
    ("writer", "file"),
    [(coco_instances, "annotations/instances_train2017.json"), (cvat, "annotations.xml"), (one_csv, "boxes.csv")],
)
def test_an_annotation_file_instead_of_its_folder(tmp_path, writer, file):
    writer(tmp_path)
    found = scan_boxes(tmp_path / file)
    assert by_name(found)["a"] == by_name(scan_boxes(tmp_path))["a"]


def test_annotations_and_images_in_different_folders(tmp_path):
    where = tmp_path / "test" / "project"  # folders above the set say nothing of splits
    for stem, (_, width, height, found) in SCENE.items():
        draw(where / "photos" / f"{stem}.jpg", width, height)
        write(where / "xml" / f"{stem}.xml", voc_xml(f"{stem}.jpg", width, height, found))
    write(where / "csv" / "boxes.csv", "path,label,xmin,ymin,xmax,ymax\na.jpg,cat,1,1,9,9\n")
    assert Counter(scan_boxes(where / "xml", images=where / "photos").splits) == {None: 4}
    assert Counter(scan_boxes(where / "csv/boxes.csv", images=where / "photos").splits) == {None: 1}


def test_classes_are_mapped_by_name_to_those_of_a_detector(tmp_path):
    ultralytics(tmp_path)
    found = scan_boxes(tmp_path, classes=["bird", "dog", "cat"])
    assert found.counts() == {"bird": 0, "dog": 3, "cat": 3}
    assert any("classes without boxes: 'bird'" in text for text in found.warnings)
    only = scan_boxes(tmp_path, classes=["dog"], max_skipped=0.6)
    assert only.skipped_counts == {"unknown class": 3}
    assert {item.label for item in only.skipped} == {"cat"}
    assert len(only) == 4
    with pytest.raises(SkippedBoxesError, match=r"at most 10% of the boxes .*: 3 of 6\. unknown class: 3"):
        scan_boxes(tmp_path, classes=["dog"])


def test_what_is_left_out_is_counted_and_listed_by_reason(tmp_path):
    good = [("cat", 1 + i, 1, 30 + i, 30) for i in range(30)]
    draw(tmp_path / "a.png", 64, 48)
    draw(tmp_path / "wrong.png", 64, 48)
    draw(tmp_path / "only.png", 64, 48)
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines = [f"a.png,64,48,{label},{x1},{y1},{x2},{y2}" for label, x1, y1, x2, y2 in good]
    lines += [
        "a.png,64,48,cat,10,10,10,20",  # no width
        "a.png,64,48,cat,20,10,5,20",  # right before left
        "a.png,64,48,cat,60,10,80,20",  # four fifths of it beside the image
        "a.png,64,48,cat,100,100,120,120",
        "a.png,64,48,cat,1,1,30,30",  # the first again
        "a.png,64,48,,3,3,9,9",
        "a.png,64,48,cat,nan,3,9,9",
        "a.png,64,48,cat,1e300,3,inf,9",
        "a.png,64,48,=cat(),-1e12,3,9,9",
        "gone.png,64,48,cat,3,3,9,9",
        "wrong.png,48,63,cat,3,3,9,9",
        "broken.png,64,48,cat,3,3,9,9",
        "only.png,64,48,cat,3,3,3,9",
        "a.png,64,48,cat,-0.5,-3,40.5,30",  # a little over the edge: cut off
    ]
    (tmp_path / "boxes.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n" + "\n".join(lines) + "\n")
    found = scan_boxes(tmp_path, max_skipped=0.9)
    assert found.skipped_counts == {
        "degenerate": 3,
        "doubled": 1,
        "image missing": 1,
        "image unreadable": 1,
        "no usable box": 1,
        "not finite": 3,
        "outside": 2,
        "size differs": 1,
        "unknown class": 1,
    }
    assert set(found.skipped_counts) <= set(REASONS)
    assert [path.name for path in found.paths] == ["a.png"]  # only.png holds something, and is no negative
    assert len(found.boxes) == 31
    assert found.boxes[-1].tolist() == [0, 0, 40.5, 30]
    assert any("1 boxes reach over the edge" in text for text in found.warnings)
    rows = pd.read_csv(__import__("io").StringIO(found.skipped_csv()), dtype=str, keep_default_na=False)
    assert len(rows) == 14
    double = rows[rows["reason"] == "doubled"].iloc[0]
    assert (double["place"], double["class"], double["x2"]) == ("36", "cat", "30")  # the line of the file
    assert "'=cat()" in set(rows["class"])  # no formula for a spreadsheet
    assert "stated 48x63, the file has 64x48" in set(rows["detail"])
    with pytest.raises(SkippedBoxesError, match=r"Received: 13 of 44\.") as caught:
        scan_boxes(tmp_path)
    assert Counter(item.reason for item in caught.value.skipped) == found.skipped_counts


def test_ten_percent_are_borne_and_not_more(tmp_path):
    draw(tmp_path / "a.png", 64, 48)
    good = [f"a.png,cat,{i},1,{i + 9},30" for i in range(18)]
    for bad, stops in ((2, False), (3, True)):
        rows = good + [f"a.png,cat,5,{i},5,9" for i in range(bad)]
        (tmp_path / "boxes.csv").write_text("path,label,xmin,ymin,xmax,ymax\n" + "\n".join(rows) + "\n")
        if stops:
            with pytest.raises(SkippedBoxesError, match="3 of 21"):
                scan_boxes(tmp_path)
        else:
            assert scan_boxes(tmp_path).skipped_counts == {"degenerate": 2}


# where the pixel at left 2..6, top 1..4 of a stored 12x8 picture is shown, by EXIF orientation
TURNED = {
    1: (2, 1, 6, 4),
    2: (6, 1, 10, 4),
    3: (6, 4, 10, 7),
    4: (2, 4, 6, 7),
    5: (1, 2, 4, 6),
    6: (4, 2, 7, 6),
    7: (4, 6, 7, 10),
    8: (1, 6, 4, 10),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_turns_pixels_and_boxes(tmp_path, orientation):
    from PIL import ImageOps

    pixels = np.zeros((8, 12), np.uint8)
    pixels[1:4, 2:6] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    x1, y1, x2, y2 = TURNED[orientation]
    assert (shown[y1:y2, x1:x2] == 255).all()
    assert shown.sum() == 255 * 12
    write(tmp_path / "a.xml", voc_xml("a.png", 12, 8, [("cat", 2, 1, 6, 4)]))  # the size as stored
    found = scan_boxes(tmp_path, orientation="auto" if orientation not in (2, 3, 4) else "stored")
    assert found.sizes.tolist() == [list(shown.shape)]
    assert found.boxes.tolist() == [[x1, y1, x2, y2]]


def test_the_stated_size_says_what_boxes_refer_to(tmp_path):
    for name in ("stored", "shown", "half", "square"):
        width, height = {"half": (60, 40), "square": (40, 40)}.get(name, (60, 40))
        draw(tmp_path / f"{name}.jpg", width, height, orientation={"half": 3}.get(name, 6))
    write(tmp_path / "stored.xml", voc_xml("stored.jpg", 60, 40, [("cat", 0, 0, 10, 20)]))
    write(tmp_path / "half.xml", voc_xml("half.jpg", 60, 40, [("cat", 0, 0, 10, 20)]))
    write(tmp_path / "square.xml", voc_xml("square.jpg", 40, 40, [("cat", 0, 0, 10, 20)]))
    found = {
        path.stem: box.tolist() for path, box in zip(*(lambda s: (s.paths, s.boxes))(scan_boxes(tmp_path)), strict=True)
    }
    # the open cases follow the one that its size decides
    assert found == {"stored": [20, 0, 40, 10], "half": [50, 20, 60, 40], "square": [20, 0, 40, 10]}
    write(tmp_path / "shown.xml", voc_xml("shown.jpg", 40, 60, [("cat", 0, 0, 10, 20)]))
    mixed = scan_boxes(tmp_path)
    assert mixed.boxes.tolist() == [[0, 0, 10, 20], [0, 0, 10, 20], [0, 0, 10, 20], [20, 0, 40, 10]]
    assert any("2 images are rotated by EXIF data, and nothing says" in text for text in mixed.warnings)
    assert any("orientation='stored' takes the other" in text for text in mixed.warnings)
    with pytest.raises(SkippedBoxesError, match=r"stated 60x40, the file has 40x60, 60x40 as stored"):
        scan_boxes(tmp_path, orientation="displayed")


def test_fractions_refer_to_the_image_that_was_annotated(tmp_path):
    draw(tmp_path / "a.jpg", 60, 40, orientation=6)
    write(tmp_path / "a.txt", "0 0.25 0.5 0.1 0.2\n")
    write(tmp_path / "classes.txt", "cat\n")
    shown = scan_boxes(tmp_path)
    np.testing.assert_allclose(shown.boxes, [[8, 24, 12, 36]], atol=1e-5)  # 40 wide, 60 high
    assert any("orientation='stored'" in text for text in shown.warnings)
    np.testing.assert_allclose(scan_boxes(tmp_path, orientation="stored").boxes, [[16, 12, 24, 18]], atol=1e-5)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_sizes_are_those_that_decoding_gives(tmp_path, ending):
    from resfit.data.decode import decode_image
    from resfit.preprocessing import InputSpec

    for orientation in (1, 6):
        draw(tmp_path / f"a.{ending}", 60, 40, orientation=orientation)
        header = read_dimensions(tmp_path / f"a.{ending}")
        image = decode_image(tmp_path / f"a.{ending}", InputSpec(size=(8, 8), resize_mode="none"))
        assert (header.height, header.width) == image.shape[:2]
        assert (header.stored_height, header.stored_width) == (40, 60)


def test_crowds_and_difficult_boxes_are_regions_to_ignore(tmp_path):
    content = coco(SCENE)
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["ignore"] = 1
    put_images(tmp_path / "images", "{stem}.jpg")
    write(tmp_path / "annotations.json", content)
    found = scan_boxes(tmp_path)
    assert found.crowd.sum() == 2
    assert found.counts() == {"dog": 2, "cat": 2}
    other = tmp_path / "voc"
    draw(other / "a.jpg", 64, 48)
    write(
        other / "a.xml", voc_xml("a.jpg", 64, 48, [("cat", 5, 5, 20, 20)], database="The VOC2007 Database", difficult=1)
    )
    hard = scan_boxes(other)
    assert hard.crowd.tolist() == [True]
    assert hard.boxes.tolist() == [[4, 4, 20, 20]]  # VOC counts pixels from 1
    assert any("difficult='box'" in text for text in hard.warnings)
    assert any("first_pixel=0" in text for text in hard.warnings)
    plain = scan_boxes(other, difficult="box", first_pixel=0)
    assert (plain.crowd.tolist(), plain.boxes.tolist()) == ([False], [[5, 5, 20, 20]])


def test_cocos_oddities(tmp_path):
    content = coco(SCENE)
    content["annotations"][0] |= {"bbox": [], "segmentation": [[4, 6, 20, 6, 20, 30, 4, 30]]}  # an outline alone
    content["annotations"][1] |= {"category_id": 555}
    content["annotations"][2] |= {"image_id": 4711}
    content["annotations"][3] |= {"bbox": ["1", None, 3, 4]}
    content["annotations"].append("text")
    for item in content["images"]:
        item["id"] = str(item["id"])  # strings, as some tools write them
    for item in content["annotations"][:-1]:
        item["image_id"] = str(item["image_id"])
    put_images(tmp_path / "images", "{stem}.jpg")
    write(tmp_path / "annotations.json", content)
    found = scan_boxes(tmp_path, max_skipped=1)
    expected = {"unknown class": 1, "image missing": 1, "not finite": 1, "unreadable annotation": 1, "no usable box": 0}
    assert found.skipped_counts == {name: count for name, count in expected.items() if count}
    assert found.boxes[0].tolist() == [4, 6, 20, 30]
    assert {item.label for item in found.skipped if item.reason == "unknown class"} == {"category 555"}


def test_yolo_outlines_and_numbers_without_names(tmp_path):
    draw(tmp_path / "a.jpg", 100, 50)
    write(
        tmp_path / "a.txt", "1 0.1 0.2 0.3 0.2 0.3 0.6\n0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.9\n2 0.5 0.5 0.1 0.1\n"
    )
    with pytest.raises(DataError, match=r"classes\.txt"):
        scan_boxes(tmp_path)
    found = scan_boxes(tmp_path, classes=["cat", "dog"], max_skipped=0.6)
    assert found.boxes.tolist() == [[10, 10, 30, 30], [40, 20, 60, 30]]
    assert found.labels.tolist() == [1, 0]
    assert found.skipped_counts == {"unknown class": 1, "unreadable annotation": 1}
    assert any("1 outlines" in text for text in found.warnings)


def test_an_image_may_be_called_as_a_list_is(tmp_path):
    for name in ("train", "labels", "other"):
        draw(tmp_path / f"{name}.jpg", 100, 50)
        write(tmp_path / f"{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "classes.txt", "cat\n")
    assert len(scan_boxes(tmp_path).boxes) == 3


def test_yaml_says_what_it_says(tmp_path):
    draw(tmp_path / "train/images/a.jpg", 100, 50)
    draw(tmp_path / "test/images/b.jpg", 100, 50)
    write(tmp_path / "train/labels/a.txt", "4 0.5 0.5 0.2 0.2\n")
    yaml = "train: train/images\nnames:\n  1: no\n  4: 2024-01-01\n"
    (tmp_path / "data.yaml").write_text(yaml)
    assert scan_boxes(tmp_path).counts() == {"no": 0, "2024-01-01": 1}  # a gap; neither a boolean nor a date
    for text, words in (
        (yaml + "nc: 3\n", "nc must be the number of names"),
        ("train: train/images\nnames: &a [cat]\nother: *a\n", "references"),
        ("train: /etc\nnames: [cat]\n", "must name folders with images below"),
        ("train: ../../../usr/share\nnames: [cat]\n", "must name folders with images below"),
        ("train: train/images\nval: [train/images, test/images]\nnames: [a, b, c, d, e]\n", "one split"),
        ("train: train/images\nnames: !!python/object/apply:os.system ['true']\n", "unknown class: 1"),
        ("train: train/images\nnames: {a: b}\n", "names of data.yaml must be"),
        ("train: " + "[" * 1500 + "\nnames: [a]\n", "must be a YOLO data.yaml"),
    ):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(DataError, match=words):
            scan_boxes(tmp_path)
    same = "train: train/images\nval: train/images\ntest: test/images\nnames: [a, b, c, d, e]\n"
    (tmp_path / "data.yaml").write_text(same)
    found = scan_boxes(tmp_path)
    assert dict(zip([path.stem for path in found.paths], found.splits, strict=True)) == {"a": None, "b": "test"}
    assert any("name the same images" in text for text in found.warnings)


def test_tables_of_boxes_say_how_they_are_read(tmp_path):
    put_images(tmp_path, "{stem}.jpg")
    write(tmp_path / "boxes.csv", "image,left,top,width,height,class\na.jpg,5,6,10,20,cat\n")
    found = scan_boxes(tmp_path / "boxes.csv")
    assert found.boxes.tolist() == [[5, 6, 15, 26]]
    assert found.skipped_counts == {}  # a box's size is no image's size
    assert any("left, top, width, height of boxes.csv are taken as left, top, width" in text for text in found.warnings)
    write(tmp_path / "boxes.csv", "a.jpg,5,6,15,26,cat\nb.jpg,,,,,\n")
    found = scan_boxes(tmp_path / "boxes.csv")
    assert (found.boxes.tolist(), found.classes) == ([[5, 6, 15, 26]], ("cat",))
    assert any("boxes.csv has no header line" in text for text in found.warnings)
    write(tmp_path / "boxes.csv", "image,kind\na.jpg,cat\n")
    with pytest.raises(DataError, match=r"must have columns such as path,label.* Received: \['image', 'kind'\]"):
        scan_boxes(tmp_path / "boxes.csv")


def test_regions_of_via_by_their_shapes_and_attributes(tmp_path):
    draw(tmp_path / "a.jpg", 100, 80)
    shapes = [
        {"name": "circle", "cx": 30, "cy": 40, "r": 10},
        {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10, "theta": np.pi / 2},
        {"name": "point", "cx": 5, "cy": 5},
    ]
    kinds = [{"kind": {"cell": True, "dirt": False}, "sure": "yes"}, {"kind": {"dirt": True}}, {"kind": {"cell": True}}]
    regions = [{"shape_attributes": one, "region_attributes": own} for one, own in zip(shapes, kinds, strict=True)]
    write(tmp_path / "via.json", {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": regions}})
    found = scan_boxes(tmp_path, max_skipped=1)
    np.testing.assert_allclose(found.boxes, [[20, 30, 40, 50], [40, 20, 60, 60]], atol=1e-4)
    assert [found.classes[label] for label in found.labels] == ["cell", "dirt"]
    assert found.skipped_counts == {"unreadable annotation": 1}
    assert any("'kind' of via.json is taken as the class, not 'sure'" in text for text in found.warnings)
    other = scan_boxes(tmp_path, max_skipped=1, columns={"label": "sure"})
    assert other.counts() == {"object": 1, "yes": 1}


def test_hostile_annotations_are_refused(tmp_path):
    draw(tmp_path / "a.jpg", 64, 48)
    entity = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY y "&x;&x;">]>'
    good = voc_xml("a.jpg", 64, 48, [("cat", 1, 1, 9, 9)])
    write(tmp_path / "a.xml", entity + good.replace("cat", "&x;"))
    with pytest.raises(DataError, match="document type"):
        scan_boxes(tmp_path)
    write(tmp_path / "a.xml", good.replace("<size>", "<q>" * 100 + "</q>" * 100 + "<size>"))
    with pytest.raises(DataError, match="nested too deeply"):
        scan_boxes(tmp_path)
    (tmp_path / "a.xml").unlink()
    for text, words in (
        ('{"images": ' + "[" * 200_000 + ', "annotations": [], "categories": []}', "nested too deeply|not JSON"),
        ('{"images": {}, "annotations": [], "categories": []}', "must have a list 'images'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "image 0 without"),
        ('{"images": [{"id": [], "file_name": "a.jpg"}], "annotations": [], "categories": []}', "image 0 without"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "unique"),
        ('{"images": [{"id": ' + "9" * 5000 + '}], "annotations": [], "categories": []}', "not JSON"),
    ):
        write(tmp_path / "a.json", text)
        with pytest.raises(DataError, match=words):
            scan_boxes(tmp_path)
    (tmp_path / "a.json").unlink()
    for name in ("a\x00b", "c\u202ed"):
        write(tmp_path / "a.xml", good.replace("cat", name))
        with pytest.raises(DataError, match=r"plain text|not XML"):
            scan_boxes(tmp_path)
    (tmp_path / "a.xml").unlink()
    __import__("os").mkfifo(tmp_path / "a.xml")
    with pytest.raises(DataError, match="must hold boxes"):
        scan_boxes(tmp_path)


def test_names_of_images_are_found_and_never_guessed(tmp_path):
    draw(tmp_path / "x/1.jpg", 10, 10)
    draw(tmp_path / "y/1.jpg", 10, 10)
    rows = "path,label,xmin,ymin,xmax,ymax\n{},cat,1,1,9,9\n"
    for name, wanted in (("y/1.jpg", "y"), ("C:\\data\\x\\1.jpg", "x"), ("./x/1.jpg", "x"), ("/old/y/1.JPG", "y")):
        write(tmp_path / "b.csv", rows.format(name))
        assert [path.parent.name for path in scan_boxes(tmp_path).paths] == [wanted], name
    for name in ("1.jpg", "z/1.jpg", "../1.jpg", "2.jpg"):
        write(tmp_path / "b.csv", rows.format(name))
        with pytest.raises(SkippedBoxesError, match=r"2 files have this name|no such file"):
            scan_boxes(tmp_path)
    (tmp_path / "x/1.jpg").unlink()
    write(tmp_path / "b.csv", rows.format("train/1.jpg") + "val/1.jpg,cat,2,2,8,8\n")  # one file cannot be both
    with pytest.raises(DataError, match=r"one split|only the file of"):
        scan_boxes(tmp_path)


def test_two_annotations_of_one_image(tmp_path):
    draw(tmp_path / "images/1.jpg", 64, 48)
    for name, box in (("x", (1, 1, 9, 9)), ("y", (20, 20, 40, 40))):
        write(tmp_path / name / "1.xml", voc_xml("1.jpg", 64, 48, [("cat", *box)]))
    found = scan_boxes(tmp_path)
    assert len(found.boxes) == 2
    assert any("1 images have several XML files" in text for text in found.warnings)
    write(tmp_path / "y/1.xml", voc_xml("1.jpg", 48, 48, [("cat", 1, 1, 9, 9)]))
    with pytest.raises(SkippedBoxesError, match="stated with two sizes"):
        scan_boxes(tmp_path)


def test_images_that_nothing_mentions(tmp_path):
    labelimg(tmp_path)
    draw(tmp_path / "train/new.jpg", 20, 20)
    found = scan_boxes(tmp_path)
    assert len(found) == 4
    assert any("train/new.jpg (unlisted='negative'" in text for text in found.warnings)
    with_it = scan_boxes(tmp_path, unlisted="negative")
    assert len(with_it) == 5
    assert with_it.splits[[path.stem for path in with_it.paths].index("new")] == "train"
    (tmp_path / "y").mkdir()
    ultralytics(tmp_path / "y")
    assert len(scan_boxes(tmp_path / "y", unlisted="skip")) == 3


def test_several_formats_in_one_folder(tmp_path):
    labelimg(tmp_path)
    write(tmp_path / "boxes.csv", "path,label,xmin,ymin,xmax,ymax\na.jpg,bird,1,1,9,9\n")
    found = scan_boxes(tmp_path)
    assert found.format == "voc"
    assert any("also holds a CSV file (boxes.csv) (format='csv'" in text for text in found.warnings)
    assert scan_boxes(tmp_path, format="csv").classes == ("bird",)
    with pytest.raises(DataError, match="It holds Pascal VOC, a CSV file"):
        scan_boxes(tmp_path, format="coco")


def test_folders_of_a_classifier_hold_no_boxes(tmp_path):
    for name in ("cats/1.jpg", "dogs/1.jpg"):
        draw(tmp_path / name, 8, 8)
    write(tmp_path / "labels.csv", "path,label\ncats/1.jpg,cat\n")
    write(tmp_path / "notes.txt", "0.5 0.5")
    write(tmp_path / "page.xml", "<html></html>")
    write(tmp_path / "config.json", {"images": 3})
    write(tmp_path / "env.yaml", "name: x\nnames: y\n")
    assert find_box_formats(tmp_path) == []
    with pytest.raises(DataError, match="source must hold boxes: COCO JSON, Pascal VOC"):
        scan_boxes(tmp_path)


def test_fractions_in_tables(tmp_path):
    draw(tmp_path / "a.jpg", 100, 50)
    write(
        tmp_path / "b.csv",
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0.1,0.5,0.2,1.0,0\na,cat,0,1,0,1,1\n",
    )
    found = scan_boxes(tmp_path)
    np.testing.assert_allclose(found.boxes, [[10, 10, 50, 50], [0, 0, 100, 50]], atol=1e-5)
    assert found.crowd.tolist() == [False, True]
    assert any("coordinates='pixels'" in text for text in found.warnings)
    pixels = scan_boxes(tmp_path, coordinates="pixels")
    np.testing.assert_allclose(pixels.boxes, [[0.1, 0.2, 0.5, 1], [0, 0, 1, 1]], atol=1e-6)


def test_a_set_is_fixed_by_its_content_and_can_be_split(tmp_path):
    one_csv(tmp_path)
    found = scan_boxes(tmp_path)
    assert found.fingerprint == scan_boxes(tmp_path).fingerprint
    text = (tmp_path / "boxes.csv").read_text()
    write(tmp_path / "boxes.csv", text.replace(";4;6;20;30;", ";4;6;20;31;"))
    assert found.fingerprint != scan_boxes(tmp_path).fingerprint
    part = found.subset([3, 0])
    assert [path.stem for path in part.paths] == [found.paths[3].stem, found.paths[0].stem]
    np.testing.assert_array_equal(part.boxes_of(0)[0], found.boxes_of(3)[0])
    assert part.owners.tolist() == [0] * len(found.boxes_of(3)[0]) + [1] * len(found.boxes_of(0)[0])
    images = found.image_set()
    assert dict(zip([path.stem for path in images.paths], images.labels.tolist(), strict=True))["b"] == 2
    assert len(split(images, val=0, test=0).test) == 1  # the stated one


def test_many_boxes_stay_one_table(tmp_path):
    draw(tmp_path / "a.png", 1000, 1000)
    random = np.random.default_rng(0)
    corner = random.integers(0, 900, (30_000, 2))
    frame = pd.DataFrame(np.concatenate([corner, corner + random.integers(1, 90, corner.shape)], axis=1))
    frame.columns = ["xmin", "ymin", "xmax", "ymax"]
    frame["path"], frame["label"] = "a.png", "cat"
    found = scan_boxes(frame, images=tmp_path, max_skipped=1)
    distinct = len(frame.drop_duplicates())
    assert len(found.boxes) == distinct
    assert found.skipped_counts.get("doubled", 0) == 30_000 - distinct


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "raccoon-boxes.tar.gz").exists(), reason="needs the reference data in ../shared")
@pytest.mark.parametrize(
    ("archive", "folder", "images", "boxes"),
    [
        ("playing-cards", "cards", {"train": 296, "test": 67}, {"train": 527, "test": 143}),
        ("raccoon", "raccoon", {None: 200}, {None: 217}),
    ],
)
def test_published_sets_have_their_published_counts(tmp_path, archive, folder, images, boxes):
    with tarfile.open(SHARED / f"{archive}-boxes.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    voc, table = (scan_boxes(tmp_path / folder, format=name) for name in ("voc", "csv"))
    for found in (voc, table):
        assert Counter(found.splits) == images
        assert Counter(found.splits[owner] for owner in found.owners) == boxes
        assert found.skipped_counts == {}
    assert voc.classes == table.classes
    assert by_name(voc) == by_name(table)


@pytest.mark.parametrize("name", ["flowers.tgz", "flowers.parquet", "photos.csv"])
def test_labels_beside_a_file_that_the_user_names_are_not_its_boxes(tmp_path, name):
    roboflow_yolo(tmp_path)
    assert find_box_formats(tmp_path) == ["yolo"]
    (tmp_path / name).write_bytes(b"path,label\na.jpg,cat\n")
    assert find_box_formats(tmp_path / name) == []
    assert find_box_formats(tmp_path / "data.yaml") == ["yolo"]
