"""JSON Schema of a configuration file, for editors: `python -m shared.config.schema > docs/config.schema.json`.

A file may leave out what the files it extends or the command line give, so no key is required here; the loader asks for
them all. Rules that tie keys together are the loader's too (checks.py).
"""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from shared.config.models import Config
from shared.config.training import MayBeNo, OneOrMany

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "one file or a list of them that this one builds on, relative to this file",
}


class _FileSchema(GenerateJsonSchema):
    """Pydantic's schema without titles, which repeat the keys, and without required keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        made = super().model_schema(schema)
        made.pop("title", None)
        made.pop("required", None)
        for value in made.get("properties", {}).values():
            if "$ref" in value:
                value.pop("default", None)  # a section's default is its keys' own
        return made

    def function_before_schema(self, schema: Any) -> dict[str, Any]:
        """What a key takes besides its own type."""
        made = super().function_before_schema(schema)
        function = schema["function"]["function"]
        if function is OneOrMany.func:
            return {"anyOf": [made["items"], made]}
        return {"anyOf": [made, {"const": False}]} if function is MayBeNo.func else made


def config_schema() -> dict[str, Any]:
    """The schema of one YAML file; `docs/config.schema.json` is this."""
    schema = Config.model_json_schema(schema_generator=_FileSchema)
    schema["properties"] = {"extends": EXTENDS, **schema["properties"]}
    return {"$schema": DIALECT, "title": "Boxloop configuration", **schema}


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=2))
