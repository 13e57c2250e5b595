"""What operations a SavedModel holds. A SavedModel is a program: to load one is to let it run.

Before a SavedModel is loaded whose publisher is not known, its graph is looked through, all functions of all its
MetaGraphs, for operations that reach out of the process:

- files: :data:`FILES_OUTSIDE`, and ``PrintV2`` to anything but the console or the log;
- the network and other machines: :data:`NETWORK`;
- Python and foreign code: :data:`CODE`;
- checkpoints: :data:`WRITES` and :data:`READS`, other than by the SavedModel's own saver. What loads the variables may
  read a checkpoint and not write one; what saves them is never run.

Not on the list are ``InitializeTableFromTextFile`` (vocabularies: what it reads stays in a table of the process) and
operations that only compute. The scan is no sandbox: a computation may still be endless or fill the memory.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from resfit.errors import CheckpointError
from resfit.weights.formats.saved_model import GRAPHS as FILES

#: Operations on files, as shell patterns.
FILES_OUTSIDE = (
    *("ReadFile", "WriteFile", "MatchingFiles", "RecordInput", "ImmutableConst", "LMDBReader"),
    *("*Reader", "*ReaderV2", "Reader[RNS]*", "Skipgram", "FixedUnigramCandidateSampler", "FileSystemSetConfiguration"),
    *("*MatchingFilesDataset", "*RecordDataset*", "*TextLineDataset", "*CSVDataset*", "*SqlDataset", "*LMDBDataset"),
    *("CacheDataset*", "*Snapshot?*", "SaveDataset*", "LoadDataset*", "*DatasetToTFRecord"),
    *("LoadAndRemapMatrix", "GenerateVocabRemapping", "DecodeProto*", "EncodeProto*"),
    *("*SummaryWriter", "*SummaryFileWriter", "*SummaryDbWriter", "Write*Summary", "CalibrationStatisticsSaver"),
    *("DebugIdentity*", "DebugNanCount", "DebugNumericSummary*", "DumpTensor"),
)
#: Operations on the network or between machines, as shell patterns.
NETWORK = (
    *("DataServiceDataset*", "RegisterDataset*", "*Rpc*", "RemoteCall", "Collective*", "*Nccl*"),
    *("Send", "Recv", "_Send", "_Recv", "_Host*", "*ConfigureDistributedTPU", "*ConfigureAndInitializeGlobalTPU"),
)
#: Operations that run Python or other foreign code, as shell patterns.
CODE = ("PyFunc*", "EagerPyFunc", "XlaCustomCall*")
#: Operations that write or delete checkpoints.
WRITES = ("Save", "SaveSlices", "SaveV2", "MergeV2Checkpoints", "DistributedSave")
#: Operations that read them.
READS = ("Restore", "RestoreSlice", "RestoreV2", "DTensorRestoreV2")

_CONSOLE = ("stdout", "stderr", "log(info)", "log(warning)", "log(error)", "")

#: Operations that XLA compiles on every device, as far as image networks and arithmetic use them. A SavedModel of
#: others is run without it.
_COMPILED = frozenset(
    """Abs Add AddN AddV2 All Any ArgMax Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp AvgPool
    AvgPoolGrad BatchMatMulV2 BiasAdd BiasAddGrad BroadcastGradientArgs BroadcastTo Cast ConcatV2 Const Conv2D
    Conv2DBackpropFilter Conv2DBackpropInput DepthwiseConv2dNative Div DivNoNan Elu EnsureShape Equal Exp ExpandDims
    Fill FusedBatchNorm FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 Greater GreaterEqual Identity IdentityN
    If L2Loss LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool MaxPoolGrad
    Maximum Mean Min Minimum MirrorPad Mul Neg NoOp OnesLike Pack Pad PadV2 PartitionedCall Placeholder
    PlaceholderWithDefault Pow Prod Range ReadVariableOp RealDiv Reciprocal Relu Relu6 ReluGrad Reshape ResizeBilinear
    Rsqrt RsqrtGrad Selu Select SelectV2 Shape Sigmoid Sign Slice Softmax Softplus Split SplitV Sqrt Square
    SquaredDifference Squeeze StatefulPartitionedCall StatelessIf StopGradient StridedSlice Sub Sum Tanh Tile
    Transpose Unpack VarHandleOp VarIsInitializedOp ZerosLike""".split()  # noqa: SIM905
)


def outside(folder: str) -> list[str]:
    """Returns the operations of a SavedModel that reach out of the process, by name.

    Args:
        folder: The folder of ``saved_model.pb``.

    Raises:
        CheckpointError: The file is damaged.
    """
    found: set[str] = set()
    for meta_graph in read(folder).meta_graphs:
        graph = _Graph(meta_graph)
        found |= {node.op for node in graph.every() if _reaches_out(node)}
        found |= graph.operations(graph.called()) & {*WRITES, *READS}
        found |= graph.operations(graph.restoring()) & set(WRITES)
    return sorted(found)


def compiles(folder: str) -> bool:
    """Whether XLA can compile what a SavedModel calls, as far as it is known here."""
    for meta_graph in read(folder).meta_graphs:
        graph = _Graph(meta_graph)
        if graph.operations(graph.called()) - _COMPILED - graph.functions.keys():
            return False
    return True


def has(folder: str, operation: str) -> bool:
    """Whether an operation stands anywhere in a SavedModel, by its name."""
    return any(node.op == operation for meta_graph in read(folder).meta_graphs for node in _Graph(meta_graph).every())


def read(folder: str) -> Any:
    """Returns the ``SavedModel`` message of a folder.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    import tensorflow as tf
    from google.protobuf import message, text_format
    from tensorflow.core.protobuf import saved_model_pb2

    found = saved_model_pb2.SavedModel()
    for name in FILES:
        path = os.path.join(folder, name)
        if not tf.io.gfile.exists(path):
            continue
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                data = file.read()
            return text_format.Parse(data, found) if name.endswith("txt") else found.FromString(data)
        except (message.DecodeError, text_format.ParseError, UnicodeDecodeError, tf.errors.OpError) as error:
            raise CheckpointError(f"{path} must be a SavedModel. Received: {error}.") from error
    raise CheckpointError(f"{folder} must hold {FILES[0]}. Received: a folder without it.")


class _Graph:
    """One MetaGraph: nodes by name, functions by name, and what leads where."""

    def __init__(self, meta_graph: Any) -> None:
        self.nodes = {node.name: node for node in meta_graph.graph_def.node}
        self.functions = {
            function.signature.name: list(function.node_def) for function in meta_graph.graph_def.library.function
        }
        self._meta_graph = meta_graph

    def every(self) -> Iterator[Any]:
        """Yields all nodes, of functions too."""
        yield from self.nodes.values()
        for nodes in self.functions.values():
            yield from nodes

    def called(self) -> list[Any]:
        """Returns the nodes that a caller can reach: all but what serves the saver alone."""
        meta = self._meta_graph
        tensors = [tensor.name for signature in meta.signature_def.values() for tensor in signature.outputs.values()]
        for collection in meta.collection_def.values():
            tensors += collection.node_list.value
        called = self._closure(tensors)
        saver = meta.saver_def
        own = self._reached(self._closure([saver.save_tensor_name, saver.restore_op_name]))
        public = self._reached(called) | self._reached_from(meta.object_graph_def.concrete_functions)
        kept = [node for name, nodes in self.functions.items() if name not in own - public for node in nodes]
        return called + kept

    def restoring(self) -> list[Any]:
        """Returns the nodes that run when the variables are loaded."""
        nodes = self._closure([self._meta_graph.saver_def.restore_op_name])
        return nodes + [node for name in self._reached(nodes) for node in self.functions[name]]

    @staticmethod
    def operations(nodes: Iterable[Any]) -> set[str]:
        """Returns the operations of nodes by name."""
        return {node.op for node in nodes}

    def _closure(self, tensors: Iterable[str]) -> list[Any]:
        """Returns the nodes outside functions that these tensors need."""
        todo = [_node_of(name) for name in tensors]
        done: dict[str, Any] = {}
        while todo:
            name = todo.pop()
            if name in done or name not in self.nodes:
                continue
            done[name] = self.nodes[name]
            todo += [_node_of(wanted) for wanted in self.nodes[name].input]
        return list(done.values())

    def _reached(self, nodes: Iterable[Any]) -> set[str]:
        return self._reached_from(name for node in nodes for name in self._callees(node))

    def _reached_from(self, names: Iterable[str]) -> set[str]:
        todo, done = [name for name in names if name in self.functions], set()
        while todo:
            name = todo.pop()
            if name not in done:
                done.add(name)
                todo += [callee for node in self.functions[name] for callee in self._callees(node)]
        return done

    def _callees(self, node: Any) -> Iterator[str]:
        names = [node.op]
        for value in node.attr.values():
            names += [value.func.name, *(one.name for one in value.list.func)]
        yield from (name for name in names if name in self.functions)


def _reaches_out(node: Any) -> bool:
    if node.op == "PrintV2":
        return node.attr["output_stream"].s.decode(errors="replace") not in _CONSOLE
    return _is_listed(node.op)


@functools.cache
def _is_listed(operation: str) -> bool:
    return any(fnmatch.fnmatchcase(operation, pattern) for pattern in (*FILES_OUTSIDE, *NETWORK, *CODE))


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
