"""What a check found before anything is started; processes that check print their findings as JSON lines."""

from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from shared.errors import BoxloopError

Found = TypeVar("Found")

Status = Literal["pass", "warn", "fail"]


class Finding(BaseModel):
    """One check by its name. `cure` is what to do, where `reason` does not say it already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    status: Status
    reason: str
    cure: str = ""


def passed(check: str, reason: str) -> Finding:
    return Finding(check=check, status="pass", reason=reason)


def warned(check: str, reason: str, cure: str = "") -> Finding:
    return Finding(check=check, status="warn", reason=reason, cure=cure)


def failed(check: str, reason: str, cure: str = "") -> Finding:
    return Finding(check=check, status="fail", reason=reason, cure=cure)


def attempt(check: str, work: Callable[[], tuple[Found, str]]) -> tuple[Found | None, Finding]:
    """Run a check that gives a value and the reason of its pass; an error of ours, or of the system, is its failure."""
    try:
        found, reason = work()
    except (BoxloopError, OSError, ValueError) as error:
        return None, failed(check, str(error))
    return found, passed(check, reason)


def checked(check: str, work: Callable[[], str]) -> Finding:
    """The same for a check that gives nothing but the reason."""
    return attempt(check, lambda: (None, work()))[1]


def tell(finding: Finding) -> None:
    """Print one line for the process that started this one."""
    print(finding.model_dump_json(), flush=True)
