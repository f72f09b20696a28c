"""The log of a run when its disk is full, and when the run is resumed after that."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from learner.reporting.jsonl_log import JsonlLog
from shared.whole_folder import NotWritten


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The kernel refuses this process what lies beyond, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_told_with_the_path_and_a_resume_goes_on_behind_the_last_whole_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "logging.jsonl"
    log = JsonlLog(path, 0)
    log.append({"step": 1})
    whole = path.read_bytes()
    with files_of_at_most(len(whole) + 5), pytest.raises(NotWritten, match=f"{path} takes no more"):
        log.append({"step": 2, "loss": 3.0})
    log.close()
    assert path.read_bytes() == whole + b'{"ste'
    resumed = JsonlLog(path, 1)
    resumed.append({"step": 2})
    resumed.close()
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == [{"step": 1}, {"step": 2}]
