"""The models as a page: `python -m shared.config.describe > docs/configuration.md`."""

import json
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared.config.keys import Key, known_keys

SIGNS = ((Gt, "gt", ">"), (Ge, "ge", "≥"), (Lt, "lt", "<"), (Le, "le", "≤"))

HEADER = """# Configuration

<!-- Made by `python -m shared.config.describe > docs/configuration.md`; a test holds it to the models. -->

A run is told everything by one YAML file and by overrides on the command line:

```yaml
extends: ../base.yaml        # one file or a list of them, relative to this file
training:
  output_dir: runs/first
```

- **Layers.** What `extends` names is read first, in order; sections are merged key by key, lists and single values are
  replaced, the later one wins. Several files may share a base; a circle is an error.
- **Overrides.** `section.key=value`, with the value in YAML: `training.max_steps=10`,
  `custom.extra.stage2_ab.schedule.pattern=[A,B]`. They lie above all files.
- **Strict.** An unknown key is an error that names the nearest known one; all mistakes are told at once, each with the
  file and line it was written at. Every rule is checked before a model is loaded.
- **Paths** in a configuration are relative to the working directory of the command, except those of `extends`.
- **Editors** complete and check a file by [config.schema.json](config.schema.json) when its first line is
  `# yaml-language-server: $schema=PATH/docs/config.schema.json`.
- The values a run really had, defaults included, are in `config.resolved.yaml` of its `output_dir`.

Keys without a default must be given."""


def configuration_page() -> str:
    """All keys with default, allowed values and meaning, as Markdown."""
    lines = [HEADER]
    section = None
    for key in known_keys():
        parent = key.path.rpartition(".")[0]
        if key.section is not None:
            continue
        if parent != section:
            section = parent
            lines += ["", f"## {f'`{section}`' if section else 'Top level'}", ""]
            lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        lines.append(_row(key))
    return "\n".join(lines) + "\n"


def _row(key: Key) -> str:
    name = key.path.rpartition(".")[2]
    return f"| `{name}` | {_default(key.field)} | {_allowed(key.field)} | {key.field.description} |"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`".replace('"', "")


def _allowed(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = []
    for rule in field.metadata:
        bounds += [f"{sign} {getattr(rule, name)}" for kind, name, sign in SIGNS if isinstance(rule, kind)]
    return ", ".join(bounds)


def _choices(annotation: object) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


if __name__ == "__main__":
    print(configuration_page(), end="")
