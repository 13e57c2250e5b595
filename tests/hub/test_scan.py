"""What a SavedModel may hold without trust, and what not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from resfit.errors import CheckpointError
from resfit.hub import scan
from tests import fuzzing

TEXT = tf.TensorSpec((), tf.string)
NUMBER = tf.TensorSpec((), tf.float32)

#: Operations whose names look as if they reached out, and which do not: they compute, hold data of the process, or
#: serve accelerators that a SavedModel cannot reach unless one is configured.
HARMLESS = {
    *("DecodeCSV", "Snapshot"),
    *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"),
    *("ShardedFilename", "ShardedFilespec"),  # strings
}


def _saved(folder, function, *specs, **attributes):
    obj = tf.train.Checkpoint(**attributes)
    obj.__call__ = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(obj, os.fspath(folder))
    return os.fspath(folder)


def test_honest_saved_models_pass(folders):
    assert {name: scan.outside(folder) for name, folder in folders.items()} == {name: [] for name in folders}


def _in_a_loop(x):
    return tf.while_loop(lambda i: i < 1.0, lambda i: i + tf.cond(i > 0, lambda: 1.0, lambda: _length(x)), [0.0])[0]


def _length(x):
    return tf.cast(tf.strings.length(tf.io.read_file(x)), tf.float32)


def _in_a_dataset(x):
    lines = tf.data.TextLineDataset(x)
    return lines.reduce(0.0, lambda total, line: total + 1.0)


def _writes(x):
    tf.io.write_file(x, "data")
    return x


def _to_a_file(x):
    tf.print(x, output_stream="file:///tmp/out")
    return x


def _to_the_log(x):
    tf.print(x, output_stream=tf.compat.v1.logging.INFO)
    return x


def _restores(x):
    return tf.raw_ops.RestoreV2(prefix=x, tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]


def _saves(x):
    tf.raw_ops.SaveV2(prefix=x, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)])
    return x


def _deletes(x):
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[x], destination_prefix=x, delete_old_dirs=True)
    return x


def _summarises(x):
    writer = tf.raw_ops.SummaryWriter()
    tf.raw_ops.CreateSummaryFileWriter(writer=writer, logdir=x, max_queue=1, flush_millis=1, filename_suffix="")
    return x


def _caches(x):
    data = tf.data.Dataset.range(3).cache("/tmp/cached")
    return data.reduce(tf.constant(0, tf.int64), lambda total, number: total + number)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (tf.io.read_file, "ReadFile"),
        (_writes, "WriteFile"),
        (tf.io.matching_files, "MatchingFiles"),
        (_in_a_loop, "ReadFile"),
        (_in_a_dataset, "TextLineDataset"),
        (_to_a_file, "PrintV2"),
        (_to_the_log, None),
        (_restores, "RestoreV2"),
        (_saves, "SaveV2"),
        (_deletes, "MergeV2Checkpoints"),
        (_summarises, "CreateSummaryFileWriter"),
        (_caches, "CacheDatasetV2"),
        (lambda x: tf.py_function(lambda y: y, [x], tf.string), "EagerPyFunc"),
        (lambda x: tf.numpy_function(lambda y: y, [x], tf.string), "PyFunc"),
    ],
)
def test_operation(tmp_path, function, found):
    folder = _saved(tmp_path / "m", function, TEXT, variable=tf.Variable(1.0))
    assert (found in scan.outside(folder)) if found else scan.outside(folder) == []


def test_what_is_not_the_call_is_looked_at_too(tmp_path):
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(lambda x: x, input_signature=[NUMBER])
    obj.other = tf.function(tf.io.read_file, input_signature=[TEXT])
    tf.saved_model.save(obj, os.fspath(tmp_path / "attribute"))
    assert scan.outside(tmp_path / "attribute") == ["ReadFile"]

    @tf.custom_gradient
    def curious(x):
        return x, lambda dy: dy + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    obj = tf.train.Checkpoint()
    obj.__call__ = tf.function(curious, input_signature=[NUMBER])
    tf.saved_model.save(obj, os.fspath(tmp_path / "gradient"), options=options)
    assert scan.outside(tmp_path / "gradient") == ["ReadFile"]


def _changed(folder, change):
    path = os.path.join(folder, "saved_model.pb")
    with open(path, "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    change(saved)
    with open(path, "wb") as file:
        file.write(saved.SerializeToString())


def test_the_saver_may_not_write_when_it_restores(tmp_path):
    folder = _saved(tmp_path / "m", lambda x: x, NUMBER, variable=tf.Variable(1.0))

    def hide(saved):
        functions = saved.meta_graphs[0].graph_def.library.function
        (restore,) = [function for function in functions if "traced_restore" in function.signature.name]
        restore.node_def.add(name="evil", op="MergeV2Checkpoints")

    assert scan.outside(folder) == []
    _changed(folder, hide)
    assert scan.outside(folder) == ["MergeV2Checkpoints"]


def test_every_meta_graph_is_looked_at(tmp_path, folders):
    folder = os.fspath(shutil.copytree(folders["meta_graphs"], tmp_path / "m"))
    _changed(folder, lambda saved: saved.meta_graphs[1].graph_def.node.add(name="evil", op="ReadFile"))
    assert scan.outside(folder) == ["ReadFile"]


def test_the_list_knows_the_operations_of_tensorflow():
    words = (
        *(
            "File",
            "Reader",
            "Write",
            "Snapshot",
            "Rpc",
            "PyFunc",
            "LMDB",
            "Sql",
            "CSV",
            "Checkpoint",
            "Vocab",
            "Record",
        ),
        *("DataService", "Dump", "DebugI", "SummaryW", "SaveV", "Restore", "ImmutableConst", "TextLine", "LoadDataset"),
    )
    suspicious = {name for name in dir(tf.raw_ops) if any(word in name for word in words)}
    listed = {name for name in suspicious if scan._is_listed(name)} | {*scan.WRITES, *scan.READS}
    assert len(listed) > 50
    unlisted = suspicious - listed - HARMLESS
    assert not {name for name in unlisted if not name.startswith("TensorArray")}


def test_what_xla_compiles(folders):
    kinds = ("half_plus_one", "batch_norm", "resnet", "nests", "strings", "vocabulary", "attributes")
    assert {kind: scan.compiles(folders[kind]) for kind in kinds} == {
        **dict.fromkeys(kinds, True),
        **{"strings": False, "vocabulary": False, "attributes": False},
    }


def test_damaged_files(tmp_path, folders):
    with pytest.raises(CheckpointError, match=r"must hold saved_model\.pb"):
        scan.outside(os.fspath(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="must be a SavedModel"):
        scan.outside(os.fspath(tmp_path))


def test_fuzzed(tmp_path, folders):
    totals = fuzzing.survive("resfit.hub.scan:outside", [Path(folders["half_plus_one"])], tmp_path)
    assert totals["refused"] > 4
