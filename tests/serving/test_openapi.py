"""schemathesis over the server's own description: whatever it makes up, there is an answer and no 5xx."""

from __future__ import annotations

import httpx
import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ALLOWED = {501}  # what this classifier does not have is no fault


def hammer(server, examples: int) -> int:
    """Asks what schemathesis makes up of every operation; returns how many requests that were."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case):
            nonlocal count
            count += 1
            if "model" in case.path_parameters and count % 2:  # half of the time a model that there is
                case.path_parameters["model"] = "fashion"
            response = case.call(timeout=60)
            if response.status_code not in ALLOWED:
                case.validate_response(response, checks=CHECKS)

        given(case=operation.as_strategy())(ask)()
    return count


def test_nothing_made_up_is_a_server_error(server):
    assert hammer(server, 5) > 60
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200


@pytest.mark.slow
def test_nothing_made_up_is_a_server_error_at_length(server):
    assert hammer(server, 300) > 3000
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
