"""What every section of the configuration is: strict about its keys, typed, and never changed once loaded."""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Section(BaseModel):
    """Base of all sections: unknown keys and non-finite numbers are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def pick(kind: type[T], section: Section, **others: Any) -> T:
    """Make a dataclass, or a model, of the section's values whose keys are names of its fields.

    `others` are the fields that the section does not have.

        pick(MatchingConfig, config.rollout)
    """
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set(getattr(kind, "model_fields", ()))
    shared = names & type(section).model_fields.keys() - others.keys()
    return kind(**{name: getattr(section, name) for name in shared}, **others)
