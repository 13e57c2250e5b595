"""Patients, sites and frames: what headers and tables say, and that no identifier goes on."""

from __future__ import annotations

import os

import numpy as np
import pytest

from resfit.data.dataset import scan, scan_images
from resfit.data.medical import privacy
from resfit.data.split import split
from resfit.errors import DataError
from resfit.preprocessing import Reading
from tests.scans import dicom, write_patient

pydicom = pytest.importorskip("pydicom")
RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.fixture
def clinic(tmp_path):
    for number in range(12):
        write_patient(tmp_path / "clinic", ("sick", "well")[number % 2], number)
    return tmp_path / "clinic"


def test_patients_are_the_groups_and_no_side_shares_one(clinic):
    images = scan(clinic)
    assert images.medical
    assert images.counts() == {"sick": 12, "well": 12}
    assert set(images.groups) == {f"patient {number}" for number in range(1, 13)}
    folders = {}
    for path, group in zip(images.paths, images.groups, strict=True):
        assert folders.setdefault(group, path.parent) == path.parent
    for seed in range(5):
        parts = split(images, val=0.2, test=0.2, seed=seed)
        sides = [{images.groups[row] for row in rows} for rows in (parts.train, parts.val, parts.test)]
        assert all(sides)
        assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


def test_sex_and_site_travel_with_the_images(clinic):
    images = scan(clinic)
    numbers = [int(path.parent.name[1:]) for path in images.paths]
    assert images.columns["sex"] == tuple("FM"[number % 2] for number in numbers)
    assert images.columns["site"] == tuple(f"site {number % 3 + 1}" for number in numbers)
    some = images.subset([3, 0])
    assert some.columns["site"] == (images.columns["site"][3], images.columns["site"][0])
    assert some.medical


def test_a_patient_on_both_sides_of_a_stated_split_is_an_error(tmp_path):
    for part, number in (("train", 1), ("train", 2), ("test", 1)):
        for label in ("sick", "well"):
            write_patient(tmp_path / part, label, number, PatientName="Planted^Name")
    with pytest.raises(DataError, match=r"'patient 1' in train and in test") as found:
        split(scan(tmp_path))
    assert "ID1" not in str(found.value)


@pytest.mark.parametrize("column", ["patient", "patient_id"])
def test_a_column_of_patients_makes_any_image_a_patients(tmp_path, column):
    from tests.pictures import write_picture

    rows = [f"path,label,{column},sex,site,remark"]
    for number in range(8):
        write_picture(tmp_path / f"{number}.png", "blue", number)
        rows.append(f"{number}.png,{'ab'[number % 2]},Doe^{number // 4},F,north,secret")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    images = scan(table)
    assert images.medical
    assert images.groups == ("patient 1",) * 4 + ("patient 2",) * 4
    assert images.columns == {"site": ("north",) * 8, "sex": ("F",) * 8}
    assert "Doe" not in repr(images)
    assert scan(table, extra_columns=("remark",)).columns == {"remark": ("secret",) * 8}
    # a group of something else stays what it is, and nothing is medical
    table.write_text(rows[0].replace(column, "group") + "\n" + "\n".join(rows[1:]))
    assert scan(table).groups == ("Doe^0",) * 4 + ("Doe^1",) * 4
    assert not scan(table).medical


def test_a_table_without_a_group_is_not_grouped_by_its_index(tmp_path):
    from tests.pictures import write_picture

    write_picture(tmp_path / "1.png", "blue", 1)
    (tmp_path / "table.csv").write_text(",path,label\n0,1.png,a\n")
    assert scan(tmp_path / "table.csv").groups == (None,)


def test_a_column_comes_before_the_tag(tmp_path):
    rows = ["path,label,patient"]
    for number in range(4):
        (path,) = write_patient(tmp_path, "sick", number, images=1)
        rows.append(f"{path.relative_to(tmp_path)},{'ab'[number % 2]},{number // 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    assert scan(tmp_path / "table.csv").groups == ("patient 1", "patient 1", "patient 2", "patient 2")


def test_one_patient_for_all_is_a_stub_and_said(tmp_path):
    for number in range(3):
        write_patient(tmp_path, "sick", number, PatientID="ANON")
    images = scan(tmp_path)
    assert images.groups == (None,) * 6
    assert any("all images have the same patient ID" in text for text in images.warnings)
    for path in images.paths:
        path.write_bytes(dicom(RAMP))
    assert any("no image has a patient ID" in text for text in scan(tmp_path).warnings)


def test_each_frame_is_an_image_and_those_of_a_file_stay_together(tmp_path):
    values = np.stack([RAMP + 100 * number for number in range(4)])
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            tags = {"PatientID": str(number)} if number else {}
            (tmp_path / label / f"{number}.dcm").write_bytes(dicom(values + number, **tags))
    assert len(scan(tmp_path)) == 6
    images = scan(tmp_path, reading=Reading(frame="each"))
    assert [path.name for path in images.paths[:4]] == [f"0.dcm#frame={number}" for number in range(4)]
    assert images.counts() == {"a": 12, "b": 12}
    assert len({group for group in images.groups[:4]}) == 1
    assert images.groups[0] not in images.groups[4:]
    assert images.groups[4] == images.groups[16]  # patient 1 is in both classes


def test_a_header_that_lies_about_its_frames_makes_one_image(tmp_path):
    import nibabel

    (tmp_path / "a.dcm").write_bytes(dicom(RAMP, NumberOfFrames=2_000_000_000))
    image = nibabel.Nifti2Image(RAMP[..., None], np.eye(4))
    image.header["dim"][3] = 2**40
    (tmp_path / "b.nii").write_bytes(image.header.binaryblock + bytes(100))
    images = scan_images([tmp_path], reading=Reading(frame="each"))
    assert [path.name for path in images.paths] == ["a.dcm", "b.nii"]


def test_of_a_series_the_middle(tmp_path):
    for series in ("1.2.3", "1.2.4"):
        for number in range(5):
            path = tmp_path / "sick" / series / f"{99 - number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dicom(RAMP, SeriesInstanceUID=series, InstanceNumber=number, PatientID=series))
    images = scan(tmp_path, reading=Reading(series="middle"))
    assert [path.name for path in images.paths] == ["97", "97"]
    assert any("8 files beside the middle one" in text for text in images.warnings)


def test_files_without_an_ending_are_found_by_their_beginning(tmp_path):
    for name, data in (("IM0001", dicom(RAMP)), ("1.2.840.113619", dicom(RAMP)), ("notes", b"words"), ("a.7", b"x")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "DICOMDIR").write_bytes(dicom(RAMP))
    assert [path.name for path in scan_images([tmp_path]).paths] == ["1.2.840.113619", "IM0001"]


def test_a_series_folder_is_a_row_of_a_table(tmp_path):
    for number in range(2):
        write_patient(tmp_path, "sick", number, images=3)
    (tmp_path / "table.csv").write_text("path,label\nsick/p000,a\nsick/p001,b\n")
    images = scan(tmp_path / "table.csv")
    assert images.counts() == {"a": 3, "b": 3}
    assert images.groups == ("patient 1",) * 3 + ("patient 2",) * 3


# DICOMDIR


def write_directory(folder, *names):
    from pydicom.dataset import Dataset, FileMetaDataset

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.DirectoryRecordSequence = []
    for name in names:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedFileID = list(name)
        ds.DirectoryRecordSequence.append(record)
    with pydicom.config.disable_value_validation():
        ds.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


@pytest.mark.filterwarnings("ignore")
def test_a_dicomdir_brings_its_files_and_none_from_outside(tmp_path):
    inside = tmp_path / "medium"
    (inside / "CT").mkdir(parents=True)
    (inside / "CT" / "1").write_bytes(dicom(RAMP))
    (inside / "ct2").mkdir()
    (inside / "ct2" / "2").write_bytes(dicom(RAMP))
    (tmp_path / "secret").write_bytes(dicom(RAMP))
    os.symlink(tmp_path, inside / "LINK")
    names = [("CT", "1"), ("CT2", "2"), ("CT", "9"), ("..", "secret"), ("LINK", "secret"), ("..\\secret",)]
    names += [("/", "etc", "passwd"), (str(tmp_path / "secret"),), ("CT", "..", "..", "secret")]
    images = scan_images([write_directory(inside, *names)])
    assert [path.relative_to(inside).as_posix() for path in images.paths] == ["CT/1", "ct2/2"]
    assert [(item.path.name, item.reason) for item in images.skipped] == [("9", "no such file")]
    assert any("6 files that a DICOMDIR lists outside its own folder" in text for text in images.warnings)
    (inside / "DICOMDIR").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="a DICOMDIR must be readable"):
        scan_images([inside / "DICOMDIR"])


def test_pydicoms_own_dicomdir_in_a_table(tmp_path):
    from pydicom.data import get_testdata_file

    path = os.path.relpath(get_testdata_file("DICOMDIR"), tmp_path)
    (tmp_path / "table.csv").write_text(f"path,label\n{path},a\n")
    images = scan(tmp_path / "table.csv")
    listed = len(images) + len(images.skipped)
    assert listed == 31
    assert set(images.labels.tolist()) == {0}


# pseudonyms


def test_pseudonyms_stand_for_content_and_are_found_again(clinic):
    images = scan(clinic)
    names = [privacy.shown(images, path) for path in images.paths]
    assert len(set(names)) == len(names)
    assert all(name.name.startswith("sha256-") for name in names)
    assert privacy.find(clinic, names[5]) == images.paths[5]
    assert privacy.find(clinic, "sha256-0123456789abcdef") is None
    frame = privacy.shown(images, images.paths[0].with_name(images.paths[0].name + "#frame=2"))
    assert frame.name == f"{names[0]}#frame=2"
    gone = privacy.pseudonym(clinic / "Doe^John.dcm")
    assert "Doe" not in gone.name
    plain = scan_images([write_plain(clinic.parent)])
    assert privacy.shown(plain, plain.paths[0]) == plain.paths[0]


def write_plain(folder):
    from tests.pictures import write_picture

    return write_picture(folder / "plain" / "a.png", "blue", 1).parent


def test_subjects_of_nifti_files_are_their_patients(tmp_path):
    import nibabel

    from tests.pictures import write_picture

    for label in ("a", "b"):
        for subject in ("01", "02"):
            for run in (1, 2):
                path = tmp_path / label / f"sub-{subject}{label}" / "anat" / f"sub-{subject}{label}_run-{run}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 6), np.int16), np.eye(4)), path)
    write_picture(tmp_path / "a" / "picture.png", "blue", 1)
    images = scan(tmp_path, reading=Reading(frame="each"))
    assert images.counts() == {"a": 25, "b": 24}
    assert images.medical
    assert len(set(images.groups)) == 5
    assert images.groups[0] is None
    assert len({images.groups[row] for row in range(1, 13)}) == 1  # both runs of the first subject
    assert any("1 of 9 images have no patient ID" in text for text in images.warnings)
