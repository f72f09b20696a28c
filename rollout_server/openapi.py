"""The OpenAPI document. Bodies are read as raw JSON by the models themselves, so they are described here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from shared.framing import MEDIA_TYPE
from shared.probe import PUBLIC_PATHS
from shared.weight_wire import WeightCommit, WeightManifest, WeightRefused
from shared.wire import (
    WIRE_VERSION,
    ErrorBody,
    RolloutBatch,
    StreamError,
    StreamFooter,
    StreamHeader,
    StreamHeartbeat,
    StreamSample,
    WireModel,
)

BODIES: dict[tuple[str, str], type[WireModel]] = {
    ("post", "/rollouts"): RolloutBatch,
    ("post", "/weights/prepare"): WeightManifest,
    ("post", "/weights/commit"): WeightCommit,
    ("post", "/weights/abort"): WeightCommit,
}
LINES: tuple[type[WireModel], ...] = (StreamHeader, StreamSample, StreamError, StreamHeartbeat, StreamFooter)
REF = "#/components/schemas/{model}"


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """All routes of `app` with their bodies and answers; every refusal is an `ErrorBody`."""
    document: dict[str, Any] = get_openapi(
        title=app.title, version=str(WIRE_VERSION), routes=app.routes, separate_input_output_schemas=False
    )
    described: tuple[type[WireModel], ...] = (ErrorBody, WeightRefused, *BODIES.values(), *LINES)
    _, schemas = models_json_schema([(model, "validation") for model in described], ref_template=REF)
    document["components"] = {
        "schemas": {**document.get("components", {}).get("schemas", {}), **schemas["$defs"]},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe(operation, path, BODIES.get((method, path)))
    return document


def _describe(operation: dict[str, Any], path: str, body: type[WireModel] | None) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if path in PUBLIC_PATHS:
        return
    operation["security"] = [{"token": []}]
    responses["default"] = _answer(ErrorBody)
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    if path == "/rollouts":
        one_of = [{"$ref": REF.format(model=line.__name__)} for line in LINES]
        responses["200"] = {
            "description": "one JSON object a line; the last is a footer",
            "content": {MEDIA_TYPE: {"itemSchema": {"oneOf": one_of}}},
        }
    if path == "/weights/chunk":
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    if path in ("/weights/prepare", "/weights/commit"):
        responses["422"] = _answer(WeightRefused)


def _answer(model: type[WireModel]) -> dict[str, Any]:
    return {"description": (model.__doc__ or "").partition("\n")[0], "content": _content(model)}


def _content(model: type[WireModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}}
