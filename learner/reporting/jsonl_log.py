"""Append-only JSON lines that a resumed run goes on with from the step it resumes at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from shared.errors import DataError
from shared.whole_folder import NotWritten


class JsonlLog:
    """One line a record, on its way to the disk when `append` returns.

    Every record has a `step`: how many optimizer steps were finished then.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        """Open `path`; lines of later steps than `resumed_at` belong to a history that did not survive, and are cut."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            keep_until(path, resumed_at)
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the record. Raises NotWritten when the disk takes no more; a resume cuts the part that it took."""
        rest = memoryview(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise NotWritten(
                f"{self._path} takes no more: {error}. Make room and resume; what stands before this line is whole"
            ) from error

    def close(self) -> None:
        self._file.close()


def keep_until(path: Path, step: int) -> None:
    """Cut the file behind the last whole line of a step up to `step`."""
    num_bytes = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n") or _step_of(line, path, number) > step:
            break
        num_bytes += len(line)
    with path.open("r+b") as file:
        file.truncate(num_bytes)


def _step_of(line: bytes, path: Path, number: int) -> int:
    try:
        return int(orjson.loads(line)["step"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number} is no record of a run ({error!r}); move the file out of the way") from None
