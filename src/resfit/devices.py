"""Which device computes: found once, with memory that grows as it is needed, and told by its name.

TensorFlow takes a GPU where it finds one. This is the one place where it is asked for its devices, before it first uses
them: memory grows instead of being taken whole, float32 means float32 (TensorFloat-32 is off), and a card that it
cannot use is a warning. :func:`using` sets the device of what runs within it; :func:`current` tells it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from resfit import processors
from resfit.errors import ArgumentError, ResfitWarning

#: What ``device=`` accepts beside ``"gpu:0"``, ``"gpu:1"`` …
NAMES = ("auto", "cpu", "gpu", "gpu:all")
#: Compute capability from which a card has units for bfloat16 and TensorFloat-32 (Ampere), and for float16 (Volta).
BFLOAT16_CAPABILITY, FLOAT16_CAPABILITY = (8, 0), (7, 0)

# what tells that the machine has an NVIDIA card, whatever TensorFlow finds
_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0")
_ROCM = "/dev/kfd"
_VERSION = Path("/proc/driver/nvidia/version")
_MOST_SECONDS = 10
# kept in each step of a network's forward pass for an image of 224 x 224, generously
_BYTES_AN_IMAGE, _AREA = 64 << 20, 224 * 224
_LEAST_BATCH, _MOST_BATCH = 32, 256


_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Device:
    """What a network runs on.

    Attributes:
        kind: ``"cpu"`` or ``"gpu"``.
        index: Number of the card, from 0.
        name: Of the processor or card.
        driver: Version of the card's driver, CUDA and cuDNN; empty for a processor.
        capability: Compute capability of a card; ``None`` where it is not told.
        memory: Bytes of a card's memory; ``None`` where it is not told.
        place: What TensorFlow calls it.
        cards: What TensorFlow calls each of the cards that ``"gpu:all"`` asks for, of which this is the first; empty
            where there is one alone.
    """

    kind: str = "cpu"
    index: int = 0
    name: str = ""
    driver: str = ""
    capability: tuple[int, int] | None = None
    memory: int | None = None
    place: str = "/CPU:0"
    cards: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What ``device=`` calls it: ``"cpu"``, ``"gpu:0"`` or ``"gpu:all"``."""
        if self.kind == "cpu":
            return "cpu"
        return "gpu:all" if self.cards else f"gpu:{self.index}"

    @property
    def each(self) -> tuple[Device, ...]:
        """Each of several cards by itself; of one device itself."""
        if not self.cards:
            return (self,)
        return tuple(
            dataclasses.replace(self, index=index, place=place, cards=()) for index, place in enumerate(self.cards)
        )

    def computes(self, precision: str) -> bool:
        """Says whether TensorFlow has units for a number format here: a card by its compute capability.

        Args:
            precision: ``"float32"``, ``"tf32"``, ``"bfloat16"`` or ``"float16"``.
        """
        if precision == "float32":
            return True
        if self.kind == "cpu":
            return precision == "bfloat16"
        least = FLOAT16_CAPABILITY if precision == "float16" else BFLOAT16_CAPABILITY
        return precision in ("tf32", "bfloat16", "float16") and (self.capability is None or self.capability >= least)

    def batch_size(self, size: tuple[int, int]) -> int:
        """Returns how many images of a height and width go through a network at once.

        Args:
            size: In pixels.
        """
        area = max(1, size[0] * size[1])
        if self.kind == "cpu":
            return max(1, min(128, 32 * _AREA // area))
        room = 8 << 30 if self.memory is None else self.memory
        images = max(1, int(room / 4 / (_BYTES_AN_IMAGE * area / _AREA)))
        return max(_LEAST_BATCH, min(_MOST_BATCH, 1 << (images.bit_length() - 1)))

    def to_dict(self) -> dict[str, Any]:
        """Returns what results, metrics and reports say of it, JSON-ready."""
        facts = {"device": self.label, "count": len(self.cards), "name": self.name, "driver": self.driver}
        return {name: value for name, value in facts.items() if value}


# what "auto" is in this process
_default = "auto"
_current: contextvars.ContextVar[Device | None] = contextvars.ContextVar("device", default=None)


def told(device: Mapping[str, Any]) -> str:
    """Returns a device for people, such as ``gpu:0 (NVIDIA H200, 550.54, CUDA 12.5.1, cuDNN 9)``.

    Args:
        device: As :meth:`Device.to_dict` tells it.
    """
    details = [f"{device['count']} cards"] if device.get("count") else []
    details += [str(device[name]) for name in ("name", "driver") if device.get(name)]
    return f"{device.get('device', 'cpu')} ({', '.join(details)})" if details else str(device.get("device", "cpu"))


def let_memory_grow() -> None:
    """Has TensorFlow take a card's memory as it needs it, unless the user has said otherwise.

    Without it the first program takes the whole card, and a server beside a fit dies. TensorFlow reads this when it
    first uses a card, whoever imported it.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def check(device: str) -> None:
    """Makes sure that a device is written as :func:`find` takes it, before any work and without TensorFlow.

    Raises:
        ArgumentError: It is not.
    """
    if device not in NAMES and not re.fullmatch(r"gpu:\d{1,3}", str(device)):
        raise ArgumentError(f'device must be auto, cpu, gpu, "gpu:" and a number, or gpu:all. Received: {device!r}.')


def choose(device: str) -> None:
    """Sets what ``"auto"`` is in this process, for a program that has not used TensorFlow yet.

    Other cards are hidden from TensorFlow then, so that networks are built on this device too.

    Args:
        device: As :func:`find` takes it.

    Raises:
        ArgumentError: It is written in another way.
    """
    global _default
    check(device)
    _default = device


def find(device: str = "auto") -> Device:
    """Returns a device of this machine.

    Args:
        device: ``"auto"``, the first card that TensorFlow can use, or else the processor; ``"cpu"``; ``"gpu"``, the
            first card; ``"gpu:1"``, one by its number; ``"gpu:all"``, all of them.

    Raises:
        ArgumentError: It is written in another way, or there is no such card.
    """
    check(device)
    device = _default if device == "auto" else device
    if device == "cpu":
        return cpu()
    if device == "auto" and _cannot_have_cards():
        return cpu()
    cards = first_use()
    if device == "auto":
        return cards[0] if cards else cpu()
    if not cards:
        raise ArgumentError(f"there is no card that TensorFlow can use{_why_none()}. Received: device={device!r}.")
    if device == "gpu:all":
        return _all_of(cards)
    if device == "gpu":
        return cards[0]
    named = next((card for card in cards if card.label == f"gpu:{int(device.partition(':')[2])}"), None)
    if named is None:
        raise ArgumentError(f"device must be one of {', '.join(card.label for card in cards)}. Received: {device!r}.")
    return named


def current() -> Device:
    """Returns the device of what runs now: that of :func:`using`, else the one of ``"auto"``."""
    return _current.get() or find()


@contextlib.contextmanager
def using(device: str | Device = "auto", *, deterministic: bool = False, seed: int = 0) -> Iterator[Device]:
    """Sets the device of what runs within it.

    Args:
        device: As :func:`find` takes it.
        deterministic: Whether TensorFlow's operations give the same bits each time, on a card too. It stays so for
            the rest of the process, and operations that cannot do it raise an error.
        seed: Of what TensorFlow draws, where it is to be deterministic.

    Raises:
        ArgumentError: There is no such device.
    """
    if isinstance(device, str):
        check(device)
    if deterministic:
        be_deterministic(seed)
    if device == "auto" and _current.get() is None:
        yield current()
        return
    chosen = current() if device == "auto" else find(device) if isinstance(device, str) else device
    token = _current.set(chosen)
    try:
        with placed(chosen):
            yield chosen
    finally:
        _current.reset(token)


def on_device(fit: _Function) -> _Function:
    """Runs a function on the device of its keyword ``device``, with ``deterministic`` and ``seed`` beside it.

    Args:
        fit: A function that has these keywords, or takes them among its options.
    """

    @functools.wraps(fit)
    def run(*arguments: Any, **options: Any) -> Any:
        deterministic, seed = bool(options.get("deterministic")), options.get("seed") or 0
        with using(options.get("device") or "auto", deterministic=deterministic, seed=seed):
            return fit(*arguments, **options)

    return cast(_Function, run)


def placed(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope in which TensorFlow's operations run on a device; nothing where Keras runs on another backend.

    It is of one thread: what hands work to another thread opens it there.

    Args:
        device: The device.
    """
    if not _on_tensorflow() or (device.kind == "cpu" and not first_use()):
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.device(device.place)


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Returns the scope in which operations run on the processor, such as what changes images before they go up."""
    return placed(Device())


def be_deterministic(seed: int) -> None:
    """Has TensorFlow give the same bits each time, from now on.

    Args:
        seed: Of what it draws.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


@functools.cache
def cpu() -> Device:
    """Returns the processor."""
    return Device(name=_processor())


@functools.cache
def first_use() -> tuple[Device, ...]:
    """Returns the cards that TensorFlow can use; the first call makes it ready for them."""
    if not _on_tensorflow():
        return ()
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    cards = _cards()
    wanted = _default != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    if wanted and not cards and (sign := card_in_sight()):
        warnings.warn(
            f"this machine has an NVIDIA card ({sign}), and TensorFlow cannot use it{_why_none()}. "
            "Going on with the processor, which --device cpu takes without this warning.",
            ResfitWarning,
            stacklevel=3,
        )
    return cards


def card_in_sight() -> str:
    """Returns what tells that the machine has an NVIDIA card, whether TensorFlow can use it or not; else nothing."""
    found = next((sign for sign in _SIGNS if os.path.exists(sign)), "")
    return found or (shutil.which("nvidia-smi") or "")


def _cannot_have_cards() -> bool:
    """Says whether nothing of this machine looks like a card, so that TensorFlow need not be imported to ask it."""
    return "tensorflow" not in sys.modules and not card_in_sight() and not os.path.exists(_ROCM)


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error is that the device's memory ran out, in TensorFlow, XLA or CUDA's words.

    Args:
        error: Any.
    """
    if type(error).__name__ == "ResourceExhaustedError":
        return True
    told = str(error)
    return type(error).__module__.startswith("tensorflow") and any(
        words in told for words in ("RESOURCE_EXHAUSTED", "OOM when allocating", "CUDA_ERROR_OUT_OF_MEMORY")
    )


def _all_of(cards: tuple[Device, ...]) -> Device:
    """Returns all cards as one device, which has and can what the least of them has and can."""
    if len(cards) == 1:
        return cards[0]
    names = list(dict.fromkeys(card.name for card in cards))
    capabilities = [card.capability for card in cards if card.capability is not None]
    memories = [card.memory for card in cards if card.memory is not None]
    return dataclasses.replace(
        cards[0],
        name=" and ".join(names),
        capability=min(capabilities) if len(capabilities) == len(cards) else None,
        memory=min(memories, default=None),
        cards=tuple(card.place for card in cards),
    )


def _on_tensorflow() -> bool:
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def _cards() -> tuple[Device, ...]:
    """Asks TensorFlow for its cards and has their memory grow: what tests put in its place."""
    import tensorflow as tf

    physical = list(enumerate(tf.config.list_physical_devices("GPU")))
    if _default == "cpu" or (_default.startswith("gpu:") and _default != "gpu:all"):
        physical = [(index, card) for index, card in physical if _default == f"gpu:{index}"]
        with contextlib.suppress(RuntimeError):  # TensorFlow has begun
            tf.config.set_visible_devices([card for _, card in physical], "GPU")
    if not physical:
        return ()
    driver, memory, found = _driver(), _memory(), []
    for place, (index, card) in enumerate(physical):
        with contextlib.suppress(RuntimeError, ValueError):  # TensorFlow has begun; let_memory_grow has said it
            tf.config.experimental.set_memory_growth(card, True)
        details = tf.config.experimental.get_device_details(card)
        found.append(
            Device(
                "gpu",
                index,
                str(details.get("device_name", "GPU")),
                driver,
                details.get("compute_capability"),
                memory,
                f"/GPU:{place}",
            )
        )
    return tuple(found)


def _driver() -> str:
    import tensorflow as tf

    parts = []
    with contextlib.suppress(OSError):
        if match := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _VERSION.read_text("ascii", "replace")):
            parts.append(match[1])
    built = tf.sysconfig.get_build_info()
    parts += [f"{name} {built[key]}" for name, key in (("CUDA", "cuda_version"), ("cuDNN", "cudnn_version")) if
              built.get(key)]  # fmt: skip
    return ", ".join(parts)


def _memory() -> int | None:
    """Returns the bytes of the smallest card."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=True).stdout
        return min(int(line) for line in told.split()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _why_none() -> str:
    """Returns why TensorFlow finds no card, with the way out, to be put behind a clause."""
    import tensorflow as tf

    if platform.system() == "Darwin":
        return f": Apple's plugin (tensorflow-metal) does not work with TensorFlow {tf.__version__}"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ": CUDA_VISIBLE_DEVICES hides all of them"
    if not tf.test.is_built_with_cuda():
        return ': this TensorFlow is built without CUDA. Install "resfit[gpu]"'
    if not card_in_sight():
        return ""
    return (
        ': its driver is too old, or libraries of CUDA are missing. Install "resfit[gpu]", and run with --debug to see '
        "which"
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {processors.available()} cores"
    return f"{platform.processor() or platform.machine()}, {processors.available()} cores"
