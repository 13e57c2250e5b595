"""Labelled images that a program holds: each kind of object gives the images, classes and parts of the folder."""

import hashlib
import http.server
import io
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import resfit
from resfit.data import inputs, urls
from resfit.data.dataset import scan
from resfit.errors import ArgumentError, InputWarning
from resfit.preprocessing import InputSpec
from tests.pictures import COLOURS, picture, write_folder

NAMES = sorted(COLOURS)
ARRAYS = np.stack([picture(name, seed) for name in NAMES for seed in range(4)])
LABELS = [name for name in NAMES for _ in range(4)]
NUMBERS = np.repeat(np.arange(3), 4)


@inputs.takes_arrays
def seen(source, *, path_column=None, label_column=None):
    """Pixels, label and part of each image that a task would see."""
    images = scan(source, path_column=path_column, label_column=label_column)
    contract = InputSpec(size=(24, 24), resize_mode="none")
    pixels = [inputs.decode.decode_image(path, contract) for path in images.paths]
    return [
        (hashlib.sha256(array.tobytes()).hexdigest(), images.label_text(row), images.splits[row])
        for row, array in enumerate(pixels)
    ]


def expected(labels=LABELS, split=None):
    return [
        (hashlib.sha256(array.tobytes()).hexdigest(), str(label), split)
        for array, label in zip(ARRAYS, labels, strict=True)
    ]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


class TorchLike:
    """As torchvision's data sets are: items by number, names in ``classes``."""

    classes = NAMES

    def __len__(self):
        return len(ARRAYS)

    def __getitem__(self, index):
        return Image.fromarray(ARRAYS[index]), int(NUMBERS[index])


def frame(kind):
    images = {
        "bytes": lambda: [png(array) for array in ARRAYS],
        "pictures": lambda: [Image.fromarray(array) for array in ARRAYS],
        "arrays": lambda: list(ARRAYS),
        "undecoded": lambda: [{"bytes": png(array), "path": None} for array in ARRAYS],
    }[kind]()
    return pd.DataFrame({"id": range(len(ARRAYS)), "photo": images, "species": LABELS})


KINDS = {
    "pair of arrays": lambda: ((ARRAYS, np.array(LABELS)), LABELS),
    "pair with numbers": lambda: ((ARRAYS, NUMBERS), NUMBERS),
    "pair of a list and a Series": lambda: (([png(array) for array in ARRAYS], pd.Series(LABELS)), LABELS),
    "frame of bytes": lambda: (frame("bytes"), LABELS),
    "frame of pictures": lambda: (frame("pictures"), LABELS),
    "frame of arrays": lambda: (frame("arrays"), LABELS),
    "frame of Hugging Face's": lambda: (frame("undecoded"), LABELS),
    "torch's kind": lambda: (TorchLike(), LABELS),
    "generator of pairs": lambda: (((array, label) for array, label in zip(ARRAYS, LABELS, strict=True)), LABELS),
    "generator of batches": lambda: (((ARRAYS[at : at + 5], LABELS[at : at + 5]) for at in (0, 5, 10)), LABELS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_classes_are_those_that_were_handed_over(kind):
    source, labels = KINDS[kind]()
    assert seen(source) == expected(labels)


def test_a_frame_of_paths_goes_by_its_columns(tmp_path):
    write_folder(tmp_path, 4)
    paths = sorted(tmp_path.rglob("*.png"))
    table = pd.DataFrame({"kind": LABELS, "where": [str(path) for path in paths], "fold": 1})
    assert seen(table) == expected()
    table["other"] = LABELS[::-1]
    assert [label for _, label, _ in seen(table, label_column="other")] == LABELS[::-1]


def test_parts_of_a_split_are_kept():
    parts = {"train": (ARRAYS, LABELS), "validation": (ARRAYS[:3] + 1, LABELS[:3]), "test": TorchLike()}
    found = seen(parts)
    assert [split for *_, split in found] == ["train"] * 12 + ["val"] * 3 + ["test"] * 12
    assert found[-12:] == expected(split="test")


def test_torch_itself_as_a_data_set_and_as_a_loader_of_batches():
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(ARRAYS).permute(0, 3, 1, 2), torch.from_numpy(NUMBERS))
    with pytest.warns(InputWarning, match="channels first"):
        assert seen(tensors) == expected(NUMBERS)
    loader = torch.utils.data.DataLoader(TorchLike(), batch_size=None)
    assert seen(loader) == expected()
    with pytest.warns(InputWarning, match="channels first"):
        assert seen(torch.utils.data.DataLoader(tensors, batch_size=5)) == expected(NUMBERS)


def test_tf_data_batched_or_not_of_arrays_bytes_and_one_hot_labels():
    import tensorflow as tf

    single = tf.data.Dataset.from_tensor_slices((ARRAYS, NUMBERS))
    assert seen(single) == expected(NUMBERS)
    batched = single.batch(5)
    batched.class_names = NAMES
    assert seen(batched) == expected()
    hot = tf.data.Dataset.from_tensor_slices((ARRAYS.astype(np.float32), np.eye(3)[NUMBERS])).batch(4)
    hot.class_names = NAMES
    assert seen(hot) == expected()
    coded = tf.data.Dataset.from_tensor_slices({"image": [png(array) for array in ARRAYS], "label": LABELS})
    assert seen(coded) == seen(coded.batch(5)) == expected()


def test_hugging_faces_own_data_sets_with_and_without_parts():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": png(array), "path": None} for array in ARRAYS], "label": NUMBERS.tolist()}
    whole = datasets.Dataset.from_dict(rows, features=features)
    assert seen(whole) == expected()
    order = [5, 0, 11, 3]
    assert seen(whole.select(order)) == [expected()[at] for at in order]
    parts = datasets.DatasetDict(train=whole, test=whole.select([1, 2]))
    assert seen(parts) == [*expected(split="train"), *[expected(split="test")[at] for at in (1, 2)]]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ArgumentError, match="12 images and 11 labels"):
        seen((ARRAYS, LABELS[:-1]))
    with pytest.raises(ArgumentError, match="at least one"):
        seen(iter(()))
    with pytest.raises(ArgumentError, match="behind others of at most 1"):
        seen(iter([(ARRAYS[0] / 255.0, "a"), (ARRAYS[1].astype(float), "b")]))
    with pytest.raises(ArgumentError, match="under one of image"):
        seen(iter([{"pixels": ARRAYS[0], "label": "a"}]))


def test_one_scale_holds_for_all_floats_even_for_a_dark_image():
    dark = np.zeros((24, 24, 3), np.float32)
    dark[0, 0] = 1.0
    images = [ARRAYS[0].astype(np.float32), dark]
    found = seen(iter(zip(images, "ab", strict=True)))
    assert found[1][0] == hashlib.sha256(dark.astype(np.uint8).tobytes()).hexdigest()


def test_predict_takes_what_fit_takes():
    contract = InputSpec(size=(24, 24), resize_mode="none")
    for source in (frame("bytes"), TorchLike(), (array for array in ARRAYS), iter([ARRAYS[:5], ARRAYS[5:]])):
        found = [inputs.decode.decode_image(item, contract) for item in inputs.listed(source, contract).items]
        np.testing.assert_array_equal(found, ARRAYS)


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = {"/a.png": png(ARRAYS[0]), "/large": b"x" * 3000}.get(self.path)
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
                return
            self.send_response(200 if data else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_addresses_are_fetched_where_that_is_allowed_and_bounded(server, monkeypatch):
    contract = InputSpec(size=(24, 24), resize_mode="none")
    with pytest.raises(ArgumentError, match="allow_urls=True"):
        inputs.listed(f"{server}/a.png", contract)
    monkeypatch.setattr(urls, "MAX_BYTES", 2500)
    asked = [f"{server}/{name}" for name in ("a.png", "none.png", "large", "away")]
    (batch,) = inputs.batches(inputs.listed(urls.opened(asked), contract), contract, 8)
    np.testing.assert_array_equal(batch.images, ARRAYS[:1])
    reasons = dict(batch.failures)
    wanted = {1: "404", 2: "more than the 2500 bytes", 3: "not allowed"}
    assert [text in reasons[row] for row, text in wanted.items()] == [True] * 3


def test_fit_check_evaluate_and_embed_take_objects(tmp_path):
    source = {"train": (ARRAYS, LABELS), "test": (np.clip(ARRAYS.astype(int) + 9, 0, 255).astype(np.uint8), LABELS)}
    fitted = resfit.fit(source, cache=tmp_path, check=False)
    assert fitted.metrics["test"]["accuracy"] == 1.0
    assert fitted.evaluate(TorchLike(), cache=tmp_path).accuracy == 1.0
    assert [item.label for item in fitted.predict(frame("pictures"))] == LABELS
    rows = resfit.embed(TorchLike(), cache=tmp_path).features
    np.testing.assert_allclose(rows, resfit.embed(ARRAYS, cache=tmp_path).features, atol=1e-5)
    assert len(resfit.check({"train": (ARRAYS, LABELS), "test": (ARRAYS[:2], LABELS[:2])}, cache=tmp_path).leaks) == 2
