"""What every section of the configuration is: strict about its keys, typed, and never changed once loaded."""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

T = TypeVar("T")


_MAX_INT = 2**63 - 1
_MAX_FLOAT = float.fromhex("0x1.fffffep127")
_MIN_FLOAT = float.fromhex("0x1p-126")
"""The largest and the smallest normal number of 32 bits, in which a model computes."""


class Section(BaseModel):
    """Base of all sections: unknown keys and non-finite numbers are refused, values are frozen.

    So are numbers that 64-bit integers or 32-bit floats do not hold: they would become another where they are used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _is_held(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > _MAX_INT:
            raise ValueError("a whole number must fit into 64 bits")
        if isinstance(value, float) and value and not _MIN_FLOAT <= abs(value) <= _MAX_FLOAT:
            raise ValueError(f"must be 0 or of {_MIN_FLOAT:.2g} to {_MAX_FLOAT:.2g}, as 32-bit numbers are")
        return value


def pick(kind: type[T], section: Section, **others: Any) -> T:
    """Make a dataclass, or a model, of the section's values whose keys are names of its fields.

    `others` are the fields that the section does not have.

        pick(MatchingConfig, config.rollout)
    """
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set(getattr(kind, "model_fields", ()))
    shared = names & type(section).model_fields.keys() - others.keys()
    return kind(**{name: getattr(section, name) for name in shared}, **others)
