"""Files of torch's world: every container, and everything that a hostile one may try."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pickle
import subprocess
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from resfit.errors import CheckpointError, ResfitError
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights.conventions import pytorch
from resfit.weights.formats import torch as reader
from resfit.weights.load import load_source, read_source
from tests.numeric import randomize

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")

SPEC = ArchitectureSpec(
    depths=(1, 1),
    widths=(4, 6),
    inner_widths=(4, 6),
    block="basic",
    stem=(StemConv(4, 7, 2),),
    stage_strides=(1, 2),
    classes=3,
)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return pytorch.to_torch(randomize(build(SPEC)))


def tensors(arrays: dict[str, np.ndarray]) -> dict:
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def same(read, arrays) -> bool:
    return read.keys() == arrays.keys() and all(np.array_equal(read[name], arrays[name]) for name in arrays)


# --- containers ---------------------------------------------------------------------------------------------------


def test_safetensors_with_counters(arrays, tmp_path):
    save_file(arrays, tmp_path / "model.safetensors")
    assert arrays["bn1.num_batches_tracked"].dtype == np.int64
    assert same(reader.read(tmp_path / "model.safetensors").arrays, arrays)
    assert same(reader.read(tmp_path).arrays, arrays)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_torch(arrays, tmp_path, suffix, zipped):
    torch = pytest.importorskip("torch")
    file = tmp_path / f"model{suffix}"
    torch.save({"state_dict": tensors(arrays), "best": [1, {"a": 2.5}]}, file, _use_new_zipfile_serialization=zipped)
    assert same(reader.read(file).arrays, {f"state_dict.{name}": array for name, array in arrays.items()})
    assert read_source(file).spec == SPEC


def test_parameters_views_and_shared_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"a": torch.nn.Parameter(whole), "b": whole.T[1:3], "c": whole}
    torch.save(state, tmp_path / "a.pth")
    read = reader.read(tmp_path / "a.pth").arrays
    assert np.array_equal(read["a"], whole)
    assert np.array_equal(read["b"], whole.T[1:3])


def test_half_precision_from_either_container(tmp_path):
    """Values that bfloat16 and float16 hold exactly, and one that only float32 does."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    values = torch.tensor([[1.0, -2.5, 3.140625], [1e-30, 65280.0, float("inf")]])
    state = {"b": values.bfloat16(), "h": values.half(), "f": values, "n": torch.tensor(7)}
    save_tensors(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        read = reader.read(tmp_path / name).arrays
        assert read["b"].dtype == np.float32
        assert np.array_equal(read["b"], values.bfloat16().float().numpy())
        assert np.array_equal(read["h"], values.half().numpy())
        assert np.array_equal(read["f"], values.numpy())
        assert read["n"] == 7


def test_bfloat16_without_torch(tmp_path):
    """1.5 is sign 0, exponent 127, and the highest bit of the mantissa: 0x3FC0."""
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\xc0\x3f\x20\xc1")
    assert reader.read(tmp_path / "a.safetensors").arrays["x"].tolist() == [1.5, -10.0]


def test_a_network_in_half_precision_loads(arrays, tmp_path):
    halves = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in arrays.items()}
    save_file(halves, tmp_path / "model.safetensors")
    kernel = load_source(tmp_path).get_layer("conv1_conv").kernel.numpy()
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, halves["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0))


def shard(arrays, folder: Path, ending: str = ".safetensors") -> dict[str, str]:
    names = sorted(arrays)
    parts = {f"model-{part + 1:05}-of-00002{ending}": names[part::2] for part in range(2)}
    for file, own in parts.items():
        if ending == ".bin":
            pytest.importorskip("torch").save(tensors({name: arrays[name] for name in own}), folder / file)
        else:
            save_file({name: arrays[name] for name in own}, folder / file)
    return {name: file for file, own in parts.items() for name in own}


def write_index(folder: Path, weight_map: dict, name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / name


@pytest.mark.parametrize(("ending", "name"), [(".safetensors", "model.safetensors"), (".bin", "pytorch_model.bin")])
def test_shards(arrays, tmp_path, ending, name):
    index = write_index(tmp_path, shard(arrays, tmp_path, ending), f"{name}.index.json")
    assert same(reader.read(tmp_path).arrays, arrays)
    assert same(reader.read(index).arrays, arrays)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.json"])
def test_shards_stay_in_their_folder(arrays, tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(arrays, tmp_path / "outside.safetensors")
    write_index(folder, dict.fromkeys(arrays, name))
    with pytest.raises(CheckpointError, match="a shard must be a file of the same folder"):
        reader.read(folder)


def test_shards_and_index_must_agree(arrays, tmp_path):
    weight_map = shard(arrays, tmp_path)
    write_index(tmp_path, {**weight_map, "more": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"all that the index names. Received: no \['more'\]"):
        reader.read(tmp_path)
    del weight_map["conv1.weight"]
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=r"must name all that .*\['conv1.weight'\]"):
        reader.read(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights file must exist"):
        reader.read(tmp_path)


def test_which_file_of_a_folder(arrays, tmp_path):
    with pytest.raises(CheckpointError, match=r"must hold one file of weights .* Received: none"):
        reader.read(tmp_path)
    save_file(arrays, tmp_path / "a.safetensors")
    (tmp_path / "b.bin").write_bytes(b"never read")
    assert same(reader.read(tmp_path).arrays, arrays)
    save_file(arrays, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"Received: a.safetensors, c.safetensors"):
        reader.read(tmp_path)
    save_file({"x": np.ones(1)}, tmp_path / "model.safetensors")
    assert list(reader.read(tmp_path).arrays) == ["x"]


# --- input contract and labels ------------------------------------------------------------------------------------

MEAN_STD = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("stated", "size", "mode", "fraction"),
    [
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.9},
         (224, 224), "shorter", 0.9),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224}, (224, 224), "shorter", 0.875),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
         (384, 384), "squash", 1.0),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 200, "width": 100}},
         (200, 100), "squash", 1.0),
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": True,
          "crop_size": {"height": 224, "width": 224}}, (224, 224), "shorter", 0.875),
        ({"size": {"shortest_edge": 64}, "do_resize": False}, (64, 64), "none", 1.0),
    ],
)  # fmt: skip
def test_contracts_of_transformers(stated, size, mode, fraction):
    spec = reader.input_contract({}, {**MEAN_STD, **stated, "rescale_factor": 0.00392156862745098, "resample": 3})
    assert (spec.size, spec.resize_mode, spec.crop_fraction) == (size, mode, fraction)
    assert (spec.mean, spec.std, spec.scale) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1 / 255)
    assert spec.interpolation == "bicubic"


def test_contract_of_timm():
    stated = {"input_size": [1, 96, 80], "mean": [0.5], "std": [0.25], "crop_pct": 0.9, "interpolation": "bicubic"}
    spec = reader.input_contract({"pretrained_cfg": {**stated, "crop_mode": "squash"}}, {})
    assert (spec.size, spec.channels, spec.mean, spec.std) == ((96, 80), 1, (0.5,), (0.25,))
    assert (spec.resize_mode, spec.crop_fraction, spec.interpolation) == ("squash", 0.9, "bicubic")
    assert reader.input_contract({"pretrained_cfg": {}}, {}) is None


@pytest.mark.parametrize("stated", [{"mean": 3, "std": [1]}, {"mean": [0.5], "std": [0]}, {"mean": ["x"], "std": [1]}])
def test_a_broken_contract_is_an_error(arrays, tmp_path, stated):
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": stated}))
    with pytest.raises(CheckpointError, match=r"the input contract of config\.json"):
        reader.read(tmp_path)


def test_labels_come_with_the_model(arrays, tmp_path):
    save_file(arrays, tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"id2label": {"2": "c", "0": "a", "1": "b"}}))
    assert load_source(tmp_path).class_names == ("a", "b", "c")
    assert load_source(tmp_path, classes=5).class_names is None
    config.write_text(json.dumps({"id2label": {"0": "a"}}))
    assert load_source(tmp_path).class_names is None
    assert reader.class_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) is None
    described = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat"}}
    assert reader.class_names(described) == ("cat", "n2")


# --- without torch ------------------------------------------------------------------------------------------------


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # any import of it fails
from resfit.weights.formats import torch
for file in sys.argv[1:]:
    read = torch.read(file)
    print(sorted((name, str(array.dtype), array.shape, float(array.sum())) for name, array in read.arrays.items()))
"""


def test_files_of_torch_are_read_without_torch(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2]).bfloat16(), "c": torch.ones(2).half()}
    torch.save({"model": state}, tmp_path / "a.pth")
    torch.save({"model": state}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    run = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "a.pth"), str(tmp_path / "b.pt")]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [
        ("model.a", "float32", (2, 3), 15.0),
        ("model.b", "float32", (2,), -0.5),
        ("model.c", "float16", (2,), 2.0),
    ]
    assert told == [str(expected)] * 2


DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_dtype_and_every_view_is_that_of_torch(zipped, protocol, tmp_path):
    torch = pytest.importorskip("torch")
    numbers = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).abs() * 50
    state = {dtype: numbers.to(getattr(torch, dtype)) for dtype in DTYPES}
    whole = torch.arange(120.0).reshape(4, 6, 5)
    state |= {"view": whole.permute(2, 0, 1)[1:3], "row": whole[2], "whole": whole, "scalar": torch.tensor(3.5)}
    state |= {"empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(whole[1]), "negative": torch._neg_view(whole)}
    state |= {"spread": torch.arange(12.0).reshape(3, 4)[:, ::2], "tagged": torch.ones(3)}
    state["tagged"].tag = "an attribute"
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    torch.save(state, tmp_path / "a.pth", **options)
    read = reader.read(tmp_path / "a.pth").arrays
    assert list(read) == list(state)
    for name, tensor in state.items():
        exact = tensor.detach().resolve_neg()
        narrow = exact.is_floating_point() and name in DTYPES and name not in ("float64", "float32", "float16")
        expected = (exact.float() if narrow else exact).numpy()
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)
    assert np.shares_memory(read["view"], read["whole"])


def test_bytes_in_the_other_order(tmp_path):
    """torch writes the order of its bytes beside the tensors, and other machines' files have the other."""
    torch = pytest.importorskip("torch")
    state = {"a": torch.tensor([1.5, -3.0]), "b": torch.tensor([1.5, -3.0]).bfloat16(), "n": torch.tensor(70_000)}
    torch.save(state, tmp_path / "a.pth")
    widths = {"0": 4, "1": 2, "2": 8}
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_STORED) as new,
    ):
        for member in old.namelist():
            content, key = old.read(member), member.rpartition("data/")[2]
            if member.endswith("byteorder"):
                content = b"big"
            elif key in widths:
                content = np.frombuffer(content, f"<u{widths[key]}").byteswap().tobytes()
            new.writestr(member, content)
    read = reader.read(tmp_path / "b.pth").arrays
    assert (read["a"].tolist(), read["b"].tolist(), read["n"].item()) == ([1.5, -3.0], [1.5, -3.0], 70_000)


def test_shared_storages_stay_shared_and_are_brought_to_float32_once(tmp_path):
    torch = pytest.importorskip("torch")
    shared = torch.ones(1_000_000, dtype=torch.bfloat16)
    torch.save({f"w{number}": shared for number in range(300)}, tmp_path / "a.pth")
    tracemalloc.start()
    read = reader.read(tmp_path / "a.pth").arrays
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read) == 300
    assert np.shares_memory(read["w0"], read["w299"])
    assert peak < 20_000_000  # the file's 2 MB, its content and its float32 form


def test_files_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert reader.read(tmp_path / "a.pth").arrays["a"].tolist() == [0, 1, 2]


# --- hostile files ------------------------------------------------------------------------------------------------


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    touched = tmp_path / "touched"
    hostile = {"conv1.weight": torch.ones(2), "x": Code(touched)}
    torch.save(hostile, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="no code is run"):
        reader.read(tmp_path / "a.pth")
    assert not touched.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)  # what it would have done
    assert touched.exists()


def test_a_plain_pickle_and_a_whole_module_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    touched = tmp_path / "touched"
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Code(touched)))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.pt")
    for name in ("a.bin", "b.pt"):
        with pytest.raises(CheckpointError):
            reader.read(tmp_path / name)
    assert not touched.exists()


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x00" * 4096])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_none(tmp_path, content, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        reader.read(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(arrays, tmp_path, share, suffix):
    file = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        pytest.importorskip("torch").save(tensors(arrays), file)
    else:
        save_file(arrays, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError):
        reader.read(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torchscript_is_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 4, 3)), tmp_path / "RN50.pt")
    with pytest.raises(CheckpointError, match=r"not a program. Received: a TorchScript archive"):
        reader.read(tmp_path / "RN50.pt")


def test_options_beside_the_weights_are_no_obstacle_and_no_code(arrays, tmp_path):
    torch = pytest.importorskip("torch")
    options = argparse.Namespace(arch="resnet18", nested=argparse.Namespace(lr=0.1))
    torch.save({"model": tensors(arrays), "args": options}, tmp_path / "a.pth")
    read = reader.read(tmp_path / "a.pth").arrays
    assert same({name.removeprefix("model."): array for name, array in read.items()}, arrays)


class AttributeDict(dict):
    """As Lightning has one."""


class Schedule:
    """As any project has one."""

    def __init__(self) -> None:
        self.slots = np.ones(3)


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_the_weights(arrays, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    (weight**2).sum().backward()
    optimizer.step()
    beside = {
        "best": np.float64(1.0),
        "curve": np.linspace(0, 1, 5),
        "classes": np.array(["ankle", "wrist"]),
        "ids": np.arange(7),
        "path": Path("a") / "b",
        "started": datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC),
        "history": collections.defaultdict(list, loss=[0.5, 0.25]),
        "counts": collections.Counter("abba"),
        "options": types.SimpleNamespace(rate=0.1, args=argparse.Namespace(arch="resnet18")),
        "hyper_parameters": AttributeDict(width=4),
        "schedule": Schedule(),
        "optimizer": optimizer,
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "span": slice(1, 2),
        "kind": {1, 2},
        "epochs": range(3),
        "random": torch.get_rng_state(),
    }
    torch.save({"state_dict": tensors(arrays), **beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_source(tmp_path / "a.pth")
    assert read.spec == SPEC
    assert any(
        text.startswith("left out objects of other programs") and "Schedule" in text for text in read.assumptions
    )
    plain = tmp_path / "plain.pth"
    torch.save(tensors(arrays), plain)
    assert same(read.arrays, read_source(plain).arrays)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """Strides of zero make four bytes a tensor of terabytes."""
    torch = pytest.importorskip("torch")
    torch.save({"fc.weight": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"no larger than what is stored.*'fc.weight'.*1000000"):
        reader.read(tmp_path / "a.pth")


def test_a_compressed_archive_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.namelist():
            new.writestr(member, old.read(member))
    with pytest.raises(CheckpointError, match="must hold all it declares, uncompressed"):
        reader.read(tmp_path / "b.pth")


def test_a_container_that_multiplies_is_refused(tmp_path):
    """Ten levels of ten references each to the same list: ten billion values in a few hundred bytes."""
    torch = pytest.importorskip("torch")
    level: list = [torch.ones(1)]
    for _ in range(10):
        level = [level] * 10
    torch.save(level, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="nested at most"):
        reader.read(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("make", ["sparse", "complex", "quantized"])
def test_tensors_that_are_no_plain_arrays(tmp_path, make):
    torch = pytest.importorskip("torch")
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.ones(2, dtype=torch.complex64),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }[make]()
    torch.save({"x": tensor}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        reader.read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "BF16", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"x": {"dtype": "NONE", "shape": [1], "data_offsets": [0, 4]}},
        {"x": 3},
    ],
)
def test_safetensors_that_lie(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(CheckpointError):
        reader.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_broken_json(tmp_path, text):
    for name in ("config.json", "model.safetensors.index.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError):
            reader.read(folder)


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(data)
    kind = generator.integers(4)
    place = int(generator.integers(len(changed)))
    if kind == 0:
        for spot in generator.integers(len(changed), size=generator.integers(1, 8)):
            changed[spot] = generator.integers(256)
    elif kind == 1:
        del changed[place : place + int(generator.integers(1, 200))]
    elif kind == 2:
        changed[place:place] = generator.bytes(int(generator.integers(1, 64)))
    else:
        # the header and the table at the end decide most
        ends = [*range(min(600, len(changed))), *range(max(len(changed) - 600, 0), len(changed))]
        for spot in generator.choice(ends, size=3):
            changed[spot] = generator.integers(256)
    return bytes(changed)


def fuzz(small: dict[str, np.ndarray], kind: str, count: int, folder: Path, seed: int = 0) -> tuple[int, int]:
    """Returns how many mutations were read and how many refused; anything but a ResfitError passes through."""
    file = folder / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        data = save(small)
    else:
        torch = pytest.importorskip("torch")
        state = {"state_dict": tensors(small), "epoch": 3}
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
        data = file.read_bytes()
    generator = np.random.default_rng(seed)
    read = refused = 0
    for _ in range(count):
        file.write_bytes(mutate(data, generator))
        try:
            read_source(file)
            read += 1
        except ResfitError:
            refused += 1
    return read, refused


def test_damaged_files_raise_only_our_own_errors(arrays, tmp_path):
    """The other formats are damaged in ``test_fuzz_torch``, in a process of its own."""
    read, refused = fuzz(arrays, "safetensors", 400, tmp_path)
    assert read + refused == 400
    assert refused > 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_damaged_files_at_length(arrays, kind, tmp_path, capsys):
    read, refused = fuzz(arrays, kind, 50_000, tmp_path, seed=1)
    with capsys.disabled():
        print(f"\n{kind}: {read} read, {refused} refused")
    assert read + refused == 50_000
