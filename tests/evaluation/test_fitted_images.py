"""What a model keeps of the images that it was fitted on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from resfit import artifact
from resfit.errors import ArtifactError
from resfit.evaluation import fitted_images


def test_images_are_known_by_their_content(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    found = fitted_images.listed(paths, np.array([1, 4]), tmp_path / "cache")[artifact.FITTED_IMAGES]
    firsts = sorted(int.from_bytes(hashlib.sha256(bytes([n]) * 100).digest()[:8], "little") for n in (0, 2, 3, 5))
    assert np.frombuffer(found, "<u8").tolist() == firsts
    again = tmp_path / "elsewhere.jpg"
    again.write_bytes(paths[2].read_bytes())
    assert fitted_images.count(found, [again, paths[1], paths[4], tmp_path / "missing.png"], False) == 1
    (said,) = fitted_images.notes(found, [again, paths[1]], False)
    assert said.startswith("1 of 2 images was used to fit the model")
    assert fitted_images.notes(found, [paths[1], paths[4]], False) == ()
    assert fitted_images.notes(b"", paths, False) == ()
    with pytest.raises(ArtifactError, match="damaged"):
        fitted_images.count(found[:-1], paths, False)
