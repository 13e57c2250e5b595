"""Eight-bit versions of networks, by NNCF, and whether they are good enough."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from resfit import dependencies
from resfit.errors import ArgumentError

#: Smallest cosine between a row in int8 and in float32.
AGREEMENT = 0.99
#: Images that are worth decoding for a calibration: three quarters calibrate, the others check.
SAMPLES = 48

_BATCH = 8


def split(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images to calibrate on, and those to check on, which are the same if there are less than four.

    Args:
        samples: Images ``(n, height, width, channels)``, RGB 0..255.

    Raises:
        ArgumentError: It is no batch of images.
    """
    samples = np.asarray(samples)
    if samples.ndim != 4 or len(samples) == 0:
        raise ArgumentError(
            "int8 is calibrated on images: samples must have shape (n, height, width, channels) with n of at least 1. "
            f"Received: shape {samples.shape}."
        )
    checked = len(samples) // 4
    return (samples[checked:], samples[:checked]) if checked else (samples, samples)


def sensitive(operations: Sequence[tuple[str, bool]], share: float) -> tuple[list[str], int]:
    """Returns the operations of a classifier in which eight bits cost most, and the number of convolutions among them.

    These are what comes before the first convolution, whose values 0..255 are rounded once more otherwise; what comes
    behind the last, of which the head alone may cost more than all convolutions together; and a share of the
    convolutions from the input on, whose errors go through the whole network.

    Args:
        operations: Name of each operation, in the order of their computation, and whether it is a convolution.
        share: Share of the convolutions, 0..1; any above 0 is at least one.
    """
    places = [place for place, (_, convolves) in enumerate(operations) if convolves]
    if not places:
        return [name for name, _ in operations], 0
    count = math.ceil(share * len(places))
    begin = places[count - 1] + 1 if count else places[0]
    return [name for name, _ in (*operations[:begin], *operations[places[-1] + 1 :])], count


def quantized(
    network: Any,
    samples: np.ndarray,
    *,
    careful: bool = False,
    feed: Callable[[np.ndarray], Any] | None = None,
    floats: Sequence[str] = (),
    full_range: bool = False,
) -> Any:
    """Returns an int8 version of a network of OpenVINO or ONNX.

    Weights are symmetric for each output channel, activations for each tensor, ranges the extremes over the samples.

    Args:
        network: An ``openvino.Model`` or ``onnx.ModelProto``.
        samples: Images ``(n, height, width, channels)``, RGB 0..255.
        careful: Whether biases are corrected too.
        feed: Makes the network's input of a batch; ``None`` passes the batch.
        floats: Names of operations that stay in float32.
        full_range: Whether the weights of the first convolution that is quantised use all eight bits. That of a network
            gets seven otherwise, since its sums can overflow on processors without instructions for eight bits.

    Raises:
        MissingDependencyError: NNCF is not installed.
    """
    nncf = _nncf()
    size = min(_BATCH, len(samples))
    starts = range(0, len(samples) - size + 1, size)
    batches = [np.ascontiguousarray(samples[start : start + size], np.float32) for start in starts]
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    overflow = nncf.OverflowFix.DISABLE if full_range else nncf.OverflowFix.FIRST_LAYER
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=overflow,
        disable_bias_correction=not careful,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    with _quiet():
        return nncf.quantize(
            network,
            nncf.Dataset(batches, feed),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=list(floats)) if floats else None,
            advanced_parameters=advanced,
        )


def check_installed() -> None:
    """Makes sure that NNCF is there, without importing it.

    Raises:
        MissingDependencyError: It is not.
    """
    dependencies.require('precision="int8"', "nncf")


def _nncf() -> Any:
    check_installed()
    import nncf

    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's progress bars and notes off the terminal."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
