"""Stem, residual blocks and head in a graph of few kinds of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from resfit.weights.graph.simplify import Simplified
from resfit.weights.graph.steps import Step

_NORMS = ("norm", "affine")
_POOLS = ("blur", "avg", "max")
_SHAPES = ("subsample", "widen")


class UnsupportedGraphError(Exception):
    """A step that has no place in a residual network.

    Args:
        step: The step.
        reason: Why it has none.
    """

    def __init__(self, step: Step, reason: str):
        super().__init__(f"{step.node}: {step.values['reason'] if step.kind == 'strange' else reason}")


@dataclasses.dataclass
class ConvUnit:
    """A convolution and what follows it.

    Attributes:
        conv: The convolution.
        norm: Its norm, or scale and shift.
        act: Its activation.
        pool: The anti-aliasing behind that.
    """

    conv: Step
    norm: Step | None = None
    act: Step | None = None
    pool: Step | None = None

    @property
    def kernel(self) -> int:
        """Side of the kernel."""
        return int(self.conv.values["kernel_shape"][0])

    @property
    def stride(self) -> int:
        """Stride, without that of the pooling behind it."""
        return int(self.conv.values["strides"][0])

    @property
    def dilation(self) -> int:
        """Distance of the kernel's taps."""
        return int(self.conv.values["dilations"][0])


@dataclasses.dataclass
class BlockShortcut:
    """What stands beside a block's residual branch.

    Attributes:
        projection: Its convolution, if it has one.
        pool: The average pooling before that.
        shapes: Subsampling and channels of zeros, where they stand in place of it.
    """

    projection: ConvUnit | None
    pool: Step | None
    shapes: tuple[Step, ...]

    @property
    def is_identity(self) -> bool:
        """Whether it hands on what it reads, all of it or every n-th pixel."""
        return self.projection is None and self.pool is None and all(step.kind == "subsample" for step in self.shapes)

    @property
    def stride(self) -> int:
        """Its stride in all."""
        stride = self.projection.stride if self.projection else 1
        for step in (self.pool, *self.shapes):
            if step is not None:
                stride *= step.values.get("strides", (1, 1))[0]
        return stride


@dataclasses.dataclass
class Block:
    """One residual block.

    Attributes:
        units: The convolutions of its residual branch.
        shortcut: What stands beside them.
        attention: Channel attention at the end of the branch.
        preact: The norm before its first convolution.
        preact_act: The activation behind that.
        add: The sum.
        raw: Whether the shortcut reads the block's input, and not what norm and activation made of it.
    """

    units: list[ConvUnit]
    shortcut: BlockShortcut
    attention: Step | None
    preact: Step | None
    preact_act: Step | None
    add: Step
    raw: bool = False

    @property
    def stride(self) -> int:
        """Its stride in all."""
        return self.shortcut.stride

    @property
    def width(self) -> int:
        """Channels that leave it."""
        return self.add.channels

    @property
    def dilation(self) -> int:
        """Of its last spatial convolution."""
        return self.units[1].dilation


@dataclasses.dataclass
class Network:
    """A residual network in a graph, as far as it was read.

    Attributes:
        before: What images go through before the first convolution.
        stem: The convolutions of the stem.
        pools: What follows them.
        blocks: The blocks.
        preactivated: Whether norm and activation come before the convolutions.
        post: The norm behind the last block, with pre-activation.
        acts: Every activation between convolutions.
        head: The classifier.
        end: Activation behind the classifier.
        pooled: The global average.
        last: The last step of the body, behind which a head begins.
        beyond: The first step of a head that is no global average with one dense layer, and why it is none.
    """

    before: list[Step] = dataclasses.field(default_factory=list)
    stem: list[ConvUnit] = dataclasses.field(default_factory=list)
    pools: list[Step] = dataclasses.field(default_factory=list)
    blocks: list[Block] = dataclasses.field(default_factory=list)
    preactivated: bool = False
    post: Step | None = None
    acts: list[Step] = dataclasses.field(default_factory=list)
    head: Step | None = None
    end: Step | None = None
    pooled: Step | None = None
    last: Step | None = None
    beyond: UnsupportedGraphError | None = None

    @property
    def stem_activated(self) -> bool:
        """With pre-activation: whether norm and activation follow the last convolution of the stem."""
        return self.preactivated and bool(self.stem) and self.stem[-1].act is not None


def find(graph: Simplified, network: Network) -> None:
    """Finds a residual network.

    Args:
        graph: The graph.
        network: An empty one. It is filled as far as the graph is understood.

    Raises:
        Misfit: A step has no place in one.
    """
    try:
        _Walk(graph, network).run()
    except UnsupportedGraphError:
        strange = next((step for step in graph.steps if step.kind == "strange"), None)
        if strange is None:
            raise
        raise UnsupportedGraphError(strange, "") from None  # which is what broke the way


class _Walk:
    def __init__(self, graph: Simplified, network: Network):
        self.graph, self.network = graph, network

    def readers(self, step: Step) -> list[Step]:
        return self.graph.readers[id(step)]

    def follow(self, step: Step) -> tuple[list[Step], Step]:
        """Steps behind one up to a fork, a sum or the end; and the last of them."""
        passed: list[Step] = []
        while len(readers := self.readers(step)) == 1 and readers[0].kind not in ("add", "multiply"):
            step = readers[0]
            passed.append(step)
            if step.kind == "strange":
                break
        return passed, step

    def run(self) -> None:
        network = self.network
        passed, at = self.follow(self.graph.start)
        waiting = self._stem(passed)
        while len(self.readers(at)) > 1 and not (network.blocks and self._is_head(at)):
            self._block(at, waiting)
            waiting, at = self.follow(network.blocks[-1].add)
            if not network.preactivated:
                waiting = self._activated(waiting, network.blocks[-1].add)
            forks = len(self.readers(at)) > 1 and not self._is_head(at)
            if waiting and forks and not network.preactivated:
                raise UnsupportedGraphError(waiting[0], "between two blocks there is nothing but an activation")
        if not network.blocks:
            step = self.readers(at)[0] if self.readers(at) else at
            raise UnsupportedGraphError(step, "before it there must be a block with a shortcut")
        self._settle_stem()
        self._end(waiting, at)

    def _is_head(self, fork: Step) -> bool:
        """Whether no convolution of maps follows a fork, so that no block can begin there."""
        seen: set[int] = set()
        waiting = list(self.readers(fork))
        while waiting:
            step = waiting.pop()
            if step.kind == "conv":
                return False
            if id(step) not in seen:
                seen.add(id(step))
                waiting += self.readers(step)
        return True

    def _check_not_cut_short(self, last: Step) -> None:
        """Refuses a step of no known kind that stands in a block: what follows the blocks that were read is no head."""
        behind: dict[int, Step] = {}
        waiting = [last]
        while waiting:
            for step in self.readers(waiting.pop()):
                if id(step) not in behind:
                    behind[id(step)] = step
                    waiting.append(step)
        convolves = any(step.kind == "conv" for step in behind.values())
        for step in self.graph.steps:
            if step.kind != "strange" or not step.inputs:  # without inputs, it is another input of the graph
                continue
            if step.values.get("summed") or (convolves and id(step) in behind):
                raise UnsupportedGraphError(step, "")

    def _settle_stem(self) -> None:
        """Decides whose the norm and activation are that stand between the stem and the first block."""
        network = self.network
        first, stem = network.blocks[0], network.stem[-1]
        if network.preactivated and stem.norm is not None and stem.act is None:
            raise UnsupportedGraphError(stem.norm, "with pre-activation, an activation must follow a norm of the stem")
        if first.preact_act is None or first.preact_act is not stem.act:
            return
        others = {block.raw for block in network.blocks[1:] if not block.shortcut.is_identity}
        if not first.shortcut.is_identity and others != {True}:
            stem.norm = stem.act = None  # the first block's, whose projection reads them
        else:
            first.preact = first.preact_act = None
            first.raw = True

    def _activated(self, passed: list[Step], add: Step) -> list[Step]:
        if not passed or passed[0].kind != "act":
            raise UnsupportedGraphError(
                passed[0] if passed else add, "an activation must follow the sum, as after the first block"
            )
        self.network.acts.append(passed[0])
        return passed[1:]

    def _stem(self, passed: list[Step]) -> list[Step]:
        """Reads the stem; returns norm and activation behind its pooling, which are the first block's."""
        network = self.network
        units, rest = network.stem, list(passed)
        while rest and rest[0].kind in ("affine", "flip"):
            network.before.append(rest.pop(0))
        while rest and rest[0].kind in ("conv", *_NORMS, "act"):
            step = rest.pop(0)
            if not units and step.kind != "conv":
                raise UnsupportedGraphError(step, "a network must begin with a convolution")
            self._unit(units, step)
        if not units:
            raise UnsupportedGraphError(
                passed[0] if passed else self.graph.start, "a network must begin with a convolution"
            )
        while rest and rest[0].kind in _POOLS:
            network.pools.append(rest.pop(0))
        return rest

    def _unit(self, units: list[ConvUnit], step: Step) -> None:
        """Puts a step behind the last convolution, or begins a new one."""
        if step.kind == "conv":
            units.append(ConvUnit(step))
            return
        last = units[-1] if units else None
        if step.kind in _NORMS and last and last.norm is None and last.act is None:
            last.norm = step
        elif step.kind == "act" and last and last.act is None:
            last.act = step
            self.network.acts.append(step)
        elif step.kind in ("blur", "avg") and last and last.act is not None and last.pool is None:
            last.pool = step
        else:
            raise UnsupportedGraphError(step, "it has no place behind this convolution")

    def _block(self, fork: Step, waiting: Sequence[Step]) -> None:
        network = self.network
        ways = [self._way(reader) for reader in self.readers(fork)]
        if len(ways) != 2:
            raise UnsupportedGraphError(
                self.readers(fork)[2], "a block must have a residual branch and a shortcut, no third way"
            )
        (one, first_sum), (other, second_sum) = ways
        if first_sum is not second_sum:
            step = next(iter(one), first_sum)
            raise UnsupportedGraphError(step, "residual branch and shortcut must meet in one sum")
        branch, shortcut = (one, other) if _convolutions(one) >= _convolutions(other) else (other, one)
        if not network.blocks:
            readers = self.readers(first_sum)
            network.preactivated = not (len(readers) == 1 and readers[0].kind == "act")
        preact, act, rest, raw = self._preactivation(list(waiting), branch, fork)
        units: list[ConvUnit] = []
        attention = None
        for step in rest:
            if attention is not None:
                raise UnsupportedGraphError(step, "channel attention must end the residual branch")
            if step.kind in ("se", "eca"):
                attention = step
            else:
                self._unit(units, step)
        last = next((step for step in rest[:1]), first_sum)
        if len(units) not in (2, 3):
            raise UnsupportedGraphError(last, f"a block must have two convolutions or three; it has {len(units)}")
        if units[-1].act or units[-1].pool or any(unit.act is None for unit in units[:-1]):
            raise UnsupportedGraphError(
                units[-1].conv, "between the convolutions of a block there must be activations, none at its end"
            )
        if network.preactivated and units[-1].norm is not None:
            raise UnsupportedGraphError(units[-1].norm, "with pre-activation no norm ends a block")
        found = Block(units, self._shortcut(shortcut), attention, preact, act, first_sum, raw)
        if network.preactivated and found.shortcut.is_identity and not raw and act is not network.stem[-1].act:
            raise UnsupportedGraphError(
                act or first_sum, "with pre-activation an identity must pass the block's input on as it is"
            )
        network.blocks.append(found)

    def _way(self, step: Step) -> tuple[list[Step], Step]:
        """The steps from a fork to the sum behind it."""
        if step.kind == "add":
            return [], step
        passed, last = self.follow(step)
        path = [step, *passed]
        strange = next((one for one in path if one.kind == "strange"), None)
        readers = self.readers(last)
        if strange is not None:
            raise UnsupportedGraphError(strange, "")
        if len(readers) != 1 or readers[0].kind != "add":
            if readers:
                raise UnsupportedGraphError(
                    readers[0], "a way from the fork of a block must go to its sum and nowhere else"
                )
            raise UnsupportedGraphError(last, "a way from the fork of a block must go to its sum")
        return path, readers[0]

    def _preactivation(
        self, waiting: list[Step], branch: list[Step], fork: Step
    ) -> tuple[Step | None, Step | None, list[Step], bool]:
        """Norm and activation before a block, which stand before the fork or on the branch; the rest of that; and
        whether the shortcut goes round them."""
        network = self.network
        if not network.preactivated:
            if waiting:
                raise UnsupportedGraphError(
                    waiting[0], "between stem or block and the next block there is nothing but an activation"
                )
            return None, None, branch, True
        stem = network.stem[-1] if not network.blocks else None
        if not waiting and branch[0].kind == "conv" and stem is not None and stem.act is not None:
            if network.pools:
                return None, None, branch, True
            return stem.norm, stem.act, branch, False  # whose they are is settled when all blocks are known
        on_branch = []
        while not waiting and branch and branch[0].kind in (*_NORMS, "act"):
            on_branch.append(branch[0])
            branch = branch[1:]
        found = waiting or on_branch
        network.acts += [step for step in found if step.kind == "act"]
        kinds = ["norm" if step.kind in _NORMS else step.kind for step in found]
        if kinds not in (["norm", "act"], ["act"]):
            step = next((step for step in found if step.kind not in (*_NORMS, "act")), found[0] if found else fork)
            raise UnsupportedGraphError(step, "with pre-activation, a block must begin with a norm and an activation")
        return (found[0] if len(found) == 2 else None), found[-1], branch, not waiting

    def _shortcut(self, path: Sequence[Step]) -> BlockShortcut:
        pool: Step | None = None
        units: list[ConvUnit] = []
        shapes: list[Step] = []
        for step in path:
            if step.kind == "avg" and pool is None and not units:
                pool = step
            elif step.kind in _SHAPES and not units and pool is None:
                shapes.append(step)
            elif (step.kind == "conv" and not units and not shapes) or (step.kind in _NORMS and units):
                self._unit(units, step)
            else:
                raise UnsupportedGraphError(
                    step, "a shortcut must be a projection, or subsampling and channels of zeros"
                )
        if self.network.preactivated and units and units[0].norm is not None:
            raise UnsupportedGraphError(units[0].norm, "with pre-activation no norm follows a projection")
        if pool is not None and not units:
            raise UnsupportedGraphError(pool, "a projection must follow the average pooling of a shortcut")
        return BlockShortcut(units[0] if units else None, pool, tuple(shapes))

    def _end(self, waiting: list[Step], at: Step) -> None:
        network, rest = self.network, list(waiting)
        network.last = network.acts[-1]
        if network.preactivated:
            if rest and rest[0].kind in _NORMS:
                network.post = network.last = rest.pop(0)
            if rest and rest[0].kind == "act":
                network.last = rest.pop(0)
                network.acts.append(network.last)
            elif network.post is None or rest:
                raise UnsupportedGraphError(
                    rest[0] if rest else at, "with pre-activation, a norm and an activation end the network"
                )
        after = list(rest)
        if rest and rest[0].kind == "mean":
            network.pooled = rest.pop(0)
            if rest and rest[0].kind == "dense":
                network.head = rest.pop(0)
        if network.head and rest and rest[0].kind in ("end", "act"):
            network.end = rest.pop(0)
        readers, ends = self.readers(at), self.graph.ends
        if not rest and not readers and len(ends) == 1 and ends[0] is at:
            return
        if not after and not readers:
            raise UnsupportedGraphError(at, "the graph must hand out what its last layer makes, and that alone")
        self._check_not_cut_short(at)
        network.pooled = network.head = network.end = None
        strange = (*rest, *readers, at)[0]
        why = (
            "behind the last block there is a global average, a classifier and nothing else"
            if rest or readers
            else "a graph must hand out one value, that of its last step"
        )
        network.beyond = UnsupportedGraphError(strange, why)


def _convolutions(path: Sequence[Step]) -> int:
    return sum(step.kind == "conv" for step in path)
