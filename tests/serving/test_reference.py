"""The OpenAPI document and its page."""

from __future__ import annotations

import json
import re
from typing import Any

from serving.errors import ForeignForm, OperatorsOnly, Refusal
from serving.routes import DAILY, ENDPOINTS, SUMMARY, TOP, USAGE
from tests.serving.conftest import LiveServer
from tests.serving.test_daily import EXAMPLE_BODY


def names_of(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """The shape of a schema: the names of its fields, in order."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "properties" in schema:
        return {name: names_of(field, document) for name, field in schema["properties"].items()}
    if "anyOf" in schema and schema["anyOf"][0].get("type") == "array":
        schema = schema["anyOf"][0]
    if schema.get("type") == "array":
        return [names_of(schema["items"], document)]
    return None


def shape_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape_of(item) for name, item in value.items()}
    return [shape_of(value[0])] if isinstance(value, list) else None


def test_the_document_declares_what_is_answered_and_nothing_else(live_server: LiveServer) -> None:
    document = live_server.client.get("/openapi.json").json()
    assert list(document["paths"]) == list(ENDPOINTS)
    body = document["paths"][DAILY]["get"]["responses"]["200"]["content"]["application/json"]
    examples = {name: example["value"] for name, example in body["examples"].items()}
    assert examples["usage"] == json.loads(EXAMPLE_BODY)
    shape = names_of(body["schema"], document)
    groups = shape["dailyUsage"][0].pop("groups")
    assert json.dumps(shape) == json.dumps(shape_of(examples["include=coverage"]))
    assert groups == shape_of(examples["group_by=api_key"])["dailyUsage"][0]["groups"]
    assert document["components"]["schemas"]["MonthOfDays"]["required"] == list(examples["usage"])
    for added, where in (("include=coverage", examples), ("group_by=api_key", examples)):
        stripped = json.loads(json.dumps(where[added]))
        stripped.pop("coverage", None)
        for day in stripped["dailyUsage"]:
            day.pop("groups", None)
        assert stripped == examples["usage"]
    for path in (SUMMARY, USAGE, TOP):
        body = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        declared = names_of(body["schema"], document)
        for day in declared.get("dailyUsage", []):
            del day["groups"]
        assert json.dumps(declared) == json.dumps(shape_of(body["examples"]["usage"]["value"]))
    statuses = ["200", "304", "400", "401", "403", "404", "405", "408", "412", "429", "500", "503"]
    for operations in document["paths"].values():
        assert list(operations["get"]["responses"]) == list(operations["head"]["responses"]) == statuses
        for status in statuses[2:]:
            content = operations["get"]["responses"][status]["content"]["application/json"]
            for code, example in content["examples"].items():
                further = ("TooManyLargeAnswers", "TooManyWideQuestions")  # of the same code
                assert code in (example["value"]["error"]["code"], *further)
                assert example["value"]["error"]["status"] == int(status)
                assert json.dumps(names_of(content["schema"], document)) == json.dumps(shape_of(example["value"]))
    not_found = {
        path: list(operations["get"]["responses"]["404"]["content"]["application/json"]["examples"])
        for path, operations in document["paths"].items()
    }
    assert [path for path, codes in not_found.items() if "API_KEY_NOT_FOUND" in codes] == [USAGE]
    for name, schema in document["components"]["schemas"].items():
        for field, declared in schema["properties"].items():
            assert "description" in declared or "$ref" in declared, f"{name}.{field}"


def test_every_refusal_is_an_example_in_the_document(live_server: LiveServer) -> None:
    def codes(refusal: type[Refusal]) -> set[str]:
        return {refusal.__dict__["code"]} if "code" in refusal.__dict__ else set()

    of_pages = {ForeignForm, OperatorsOnly}  # pages are no part of the API
    known = {code for refusal in set(every_kind_of(Refusal)) - of_pages for code in codes(refusal)}
    shown = {
        code
        for operations in live_server.client.get("/openapi.json").json()["paths"].values()
        for answer in operations["get"]["responses"].values()
        for code in answer.get("content", {}).get("application/json", {}).get("examples", ())
        if code.isupper()
    }
    assert len(known) > 10
    assert shown == known


def every_kind_of(refusal: type[Refusal]) -> list[type[Refusal]]:
    return [kind for direct in refusal.__subclasses__() for kind in (direct, *every_kind_of(direct))]


def test_the_links_lead_to_operations_with_these_parameters(live_server: LiveServer) -> None:
    paths = live_server.client.get("/openapi.json").json()["paths"]
    operations = {one["operationId"]: one for path in paths.values() for one in path.values()}
    links = [link for one in operations.values() for link in one["responses"]["200"].get("links", {}).values()]
    assert len(links) == 4
    for link in links:
        parameters = {parameter["name"] for parameter in operations[link["operationId"]]["parameters"]}
        assert link["parameters"].keys() <= parameters


def test_the_page_needs_nothing_from_elsewhere(live_server: LiveServer) -> None:
    page = live_server.client.get("/docs")
    assert page.status_code == 200
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert address.startswith("/")
        file = live_server.client.get(address)
        assert file.status_code == 200
        assert not re.search(r"url\(\W?https?:|@import", file.text) or not address.endswith(".css")
    assert (
        '"layout": "BaseLayout"' in page.text
    )  # the other one shows what a validator elsewhere thinks of the document
    assert "http:" not in page.text
    assert "https:" not in page.text


def test_no_file_beside_those_of_the_page_is_served(live_server: LiveServer) -> None:
    for path in ("../core.py", "%2e%2e/core.py", "..%2fcore.py", "", "/etc/passwd"):
        answer = live_server.client.get(f"{live_server.url}/static-offline-docs/{path}")
        assert answer.status_code == 404, path
