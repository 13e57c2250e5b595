"""Stem, residual blocks and head in a graph of few kinds of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from resfit.checkpoints.onnx_graph.simplify import Simplified
from resfit.checkpoints.onnx_graph.steps import Step

_NORMS = ("norm", "affine")
_POOLS = ("blur", "avg", "max")
_SHAPES = ("subsample", "widen")


class Misfit(Exception):
    """A step that has no place in a residual network.

    Args:
        step: The step.
        reason: Why it has none.
    """

    def __init__(self, step: Step, reason: str):
        super().__init__(f"{step.node}: {step.values['reason'] if step.kind == 'strange' else reason}")


@dataclasses.dataclass
class Unit:
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
class Shortcut:
    """What stands beside a block's residual branch.

    Attributes:
        projection: Its convolution, if it has one.
        pool: The average pooling before that.
        shapes: Subsampling and channels of zeros, where they stand in place of it.
    """

    projection: Unit | None
    pool: Step | None
    shapes: tuple[Step, ...]

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
    """

    units: list[Unit]
    shortcut: Shortcut
    attention: Step | None
    preact: Step | None
    preact_act: Step | None
    add: Step

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
    """

    before: list[Step] = dataclasses.field(default_factory=list)
    stem: list[Unit] = dataclasses.field(default_factory=list)
    pools: list[Step] = dataclasses.field(default_factory=list)
    blocks: list[Block] = dataclasses.field(default_factory=list)
    preactivated: bool = False
    post: Step | None = None
    acts: list[Step] = dataclasses.field(default_factory=list)
    head: Step | None = None
    end: Step | None = None


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
    except Misfit:
        strange = next((step for step in graph.steps if step.kind == "strange"), None)
        if strange is None:
            raise
        raise Misfit(strange, "") from None  # which is what broke the way


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
        while len(self.readers(at)) > 1:
            self._block(at, waiting)
            waiting, at = self.follow(network.blocks[-1].add)
            if not network.preactivated:
                waiting = self._activated(waiting, network.blocks[-1].add)
            if waiting and len(self.readers(at)) > 1 and not network.preactivated:
                raise Misfit(waiting[0], "between two blocks there is nothing but an activation")
        if not network.blocks:
            step = self.readers(at)[0] if self.readers(at) else at
            raise Misfit(step, "before it there must be a block with a shortcut")
        self._end(waiting, at)

    def _activated(self, passed: list[Step], add: Step) -> list[Step]:
        if not passed or passed[0].kind != "act":
            raise Misfit(passed[0] if passed else add, "an activation must follow the sum, as after the first block")
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
                raise Misfit(step, "a network must begin with a convolution")
            self._unit(units, step)
        if not units:
            raise Misfit(passed[0] if passed else self.graph.start, "a network must begin with a convolution")
        while rest and rest[0].kind in _POOLS:
            network.pools.append(rest.pop(0))
        return rest

    def _unit(self, units: list[Unit], step: Step) -> None:
        """Puts a step behind the last convolution, or begins a new one."""
        if step.kind == "conv":
            units.append(Unit(step))
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
            raise Misfit(step, "it has no place behind this convolution")

    def _block(self, fork: Step, waiting: Sequence[Step]) -> None:
        network = self.network
        ways = [self._way(reader) for reader in self.readers(fork)]
        if len(ways) != 2:
            raise Misfit(self.readers(fork)[2], "a block must have a residual branch and a shortcut, no third way")
        (one, first_sum), (other, second_sum) = ways
        if first_sum is not second_sum:
            step = next(iter(one), first_sum)
            raise Misfit(step, "residual branch and shortcut must meet in one sum")
        branch, shortcut = (one, other) if _convolutions(one) >= _convolutions(other) else (other, one)
        if not network.blocks:
            readers = self.readers(first_sum)
            network.preactivated = not (len(readers) == 1 and readers[0].kind == "act")
        preact, act, rest = self._preactivation(list(waiting), branch, fork)
        units: list[Unit] = []
        attention = None
        for step in rest:
            if attention is not None:
                raise Misfit(step, "channel attention must end the residual branch")
            if step.kind in ("se", "eca"):
                attention = step
            else:
                self._unit(units, step)
        last = next((step for step in rest[:1]), first_sum)
        if len(units) not in (2, 3):
            raise Misfit(last, f"a block must have two convolutions or three; it has {len(units)}")
        if units[-1].act or units[-1].pool or any(unit.act is None for unit in units[:-1]):
            raise Misfit(
                units[-1].conv, "between the convolutions of a block there must be activations, none at its end"
            )
        if network.preactivated and units[-1].norm is not None:
            raise Misfit(units[-1].norm, "with pre-activation no norm ends a block")
        network.blocks.append(Block(units, self._shortcut(shortcut), attention, preact, act, first_sum))

    def _way(self, step: Step) -> tuple[list[Step], Step]:
        """The steps from a fork to the sum behind it."""
        if step.kind == "add":
            return [], step
        passed, last = self.follow(step)
        path = [step, *passed]
        strange = next((one for one in path if one.kind == "strange"), None)
        readers = self.readers(last)
        if strange is not None:
            raise Misfit(strange, "")
        if len(readers) != 1 or readers[0].kind != "add":
            if readers:
                raise Misfit(readers[0], "a way from the fork of a block must go to its sum and nowhere else")
            raise Misfit(last, "a way from the fork of a block must go to its sum")
        return path, readers[0]

    def _preactivation(
        self, waiting: list[Step], branch: list[Step], fork: Step
    ) -> tuple[Step | None, Step | None, list[Step]]:
        """Norm and activation before a block, which stand before the fork or on the branch; and the rest of that."""
        network = self.network
        if not network.preactivated:
            if waiting:
                raise Misfit(waiting[0], "between stem or block and the next block there is nothing but an activation")
            return None, None, branch
        stem = network.stem[-1] if not network.blocks and not network.pools else None
        if not waiting and branch[0].kind == "conv" and stem is not None and stem.act is not None:
            found = [stem.norm, stem.act] if stem.norm else [stem.act]  # nothing stands between stem and block
            stem.norm = stem.act = None
        else:
            on_branch = []
            while not waiting and branch and branch[0].kind in (*_NORMS, "act"):
                on_branch.append(branch[0])
                branch = branch[1:]
            found = waiting or on_branch
            network.acts += [step for step in found if step.kind == "act"]
        kinds = ["norm" if step.kind in _NORMS else step.kind for step in found]
        if kinds not in (["norm", "act"], ["act"]):
            step = next((step for step in found if step.kind not in (*_NORMS, "act")), found[0] if found else fork)
            raise Misfit(step, "with pre-activation, a block must begin with a norm and an activation")
        return (found[0] if len(found) == 2 else None), found[-1], branch

    def _shortcut(self, path: Sequence[Step]) -> Shortcut:
        pool: Step | None = None
        units: list[Unit] = []
        shapes: list[Step] = []
        for step in path:
            if step.kind == "avg" and pool is None and not units:
                pool = step
            elif step.kind in _SHAPES and not units and pool is None:
                shapes.append(step)
            elif (step.kind == "conv" and not units and not shapes) or (step.kind in _NORMS and units):
                self._unit(units, step)
            else:
                raise Misfit(step, "a shortcut must be a projection, or subsampling and channels of zeros")
        if self.network.preactivated and units and units[0].norm is not None:
            raise Misfit(units[0].norm, "with pre-activation no norm follows a projection")
        if pool is not None and not units:
            raise Misfit(pool, "a projection must follow the average pooling of a shortcut")
        return Shortcut(units[0] if units else None, pool, tuple(shapes))

    def _end(self, waiting: list[Step], at: Step) -> None:
        network, rest = self.network, list(waiting)
        if network.preactivated:
            if rest and rest[0].kind in _NORMS:
                network.post = rest.pop(0)
            if rest and rest[0].kind == "act":
                network.acts.append(rest.pop(0))
            elif network.post is None or rest:
                raise Misfit(rest[0] if rest else at, "with pre-activation, a norm and an activation end the network")
        if rest and rest[0].kind == "mean":
            rest.pop(0)
            if rest and rest[0].kind == "dense":
                network.head = rest.pop(0)
        if network.head and rest and (rest[0].kind == "end" or rest[0].kind == "act"):
            network.end = rest.pop(0)
        if rest:
            raise Misfit(rest[0], "behind the last block there is a global average, a classifier and nothing else")
        if self.readers(at):
            raise Misfit(self.readers(at)[0], "it has no place behind the last block")


def _convolutions(path: Sequence[Step]) -> int:
    return sum(step.kind == "conv" for step in path)
