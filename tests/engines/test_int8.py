"""Which operations of a network stay in float32 when the rest of it is quantised."""

from __future__ import annotations

import pytest

from resfit.engines import int8

OPERATIONS = [
    ("scale", False),
    ("a", True),
    ("relu", False),
    ("b", True),
    ("c", True),
    ("d", True),
    ("mean", False),
    ("head", False),
]


@pytest.mark.parametrize(
    ("share", "names", "count"),
    [
        (0.0, ["scale", "mean", "head"], 0),
        (0.05, ["scale", "a", "mean", "head"], 1),
        (0.5, ["scale", "a", "relu", "b", "mean", "head"], 2),
        (1.0, [name for name, _ in OPERATIONS], 4),
    ],
)
def test_both_ends_and_a_share_of_the_convolutions_are_sensitive(share, names, count):
    assert int8.sensitive(OPERATIONS, share) == (names, count)


def test_a_network_without_convolutions_stays_as_it_is():
    assert int8.sensitive([("mean", False), ("head", False)], 0.0) == (["mean", "head"], 0)
