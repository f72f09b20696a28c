"""Folders are there whole or not at all."""

from pathlib import Path

import pytest

from shared.whole_folder import NotWritten, whole_folder


def test_a_folder_is_there_when_its_block_has_ended_well(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("all of it")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new" / "file").read_text() == "all of it"


def test_a_full_disk_is_told_with_path_and_need_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")

    def overwrite() -> None:
        with whole_folder(tmp_path / "old", num_bytes=3 * 2**20) as folder:
            (folder / "file").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(NotWritten, match=rf"{tmp_path / 'old'} cannot be written: .*No space left.*about 3\.0 MiB"):
        overwrite()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "file").read_text() == "old"


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".new.partial"
    left.mkdir()
    (left / "half").write_text("half")
    with whole_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert not left.exists()
