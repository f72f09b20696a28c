"""Two runs never write into one folder, and nothing of ours replaces a device or a link."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.run_folder import LOCK_FILE, LOCK_VARIABLE, check_writable, lock_run
from shared.whole_file import whole_file, write_whole
from shared.whole_folder import NotWritten, whole_folder

HOLDER = """
import sys, time
from pathlib import Path
from shared.run_folder import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.reported("torchtune#481 deepinv#525 two runs, one folder")
def test_a_second_run_is_refused_with_host_and_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused, lock_run(tmp_path):
        pass
    assert f"process {holder.pid} on {socket.gethostname()}" in str(refused.value)
    assert "a folder of its own" in str(refused.value)


def test_a_dead_holder_is_taken_over(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_run(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    with lock_run(tmp_path):
        pass


@pytest.mark.slow
def test_a_child_that_inherits_the_lock_keeps_it_when_its_parent_is_gone(tmp_path: Path) -> None:
    child_program = HOLDER.replace("60", "2")
    with lock_run(tmp_path) as lock:
        assert lock is not None
        child = subprocess.Popen(
            [sys.executable, "-c", child_program, str(tmp_path)],
            env={**os.environ, LOCK_VARIABLE: str(lock)},
            pass_fds=(lock,),
        )
    with pytest.raises(ConfigError), lock_run(tmp_path):
        pass
    child.wait()
    with lock_run(tmp_path):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(file: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock_run(tmp_path) as lock:
        assert lock is None
    assert "cannot be locked" in caplog.text


@pytest.mark.reported("trl#3872 output_dir is a file, or below one")
@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    folder = tmp_path / "file" if kind == "a file" else tmp_path / "file" / "run"
    for attempt in (lambda: check_writable(folder), lambda: lock_run(folder).__enter__()):
        with pytest.raises(ConfigError, match=r"training\.output_dir: .* cannot be written: "):
            attempt()
    with pytest.raises(NotWritten, match="cannot be written"), whole_folder(folder / "x"):
        pass


def test_a_folder_that_can_be_is_not_made_by_looking(tmp_path: Path) -> None:
    assert "can be made" in check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    assert "can be written" in check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.reported("trl#3872 a read-only mount")
@pytest.mark.skipif(os.getuid() != 0 and not os.path.ismount("/proc"), reason="needs a place nobody can write")
def test_a_mount_that_takes_nothing_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(Path("/proc/boxloop/run"))


@pytest.mark.reported("yolov5#11115 --out is a link")
def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    (tmp_path / "folder").mkdir()
    (tmp_path / "to").symlink_to("folder")
    with whole_folder(tmp_path / "to") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "to").is_symlink()
    assert (tmp_path / "folder" / "a").exists()


def test_a_link_to_nothing_makes_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "later").read_text() == "new"


@pytest.mark.reported("yolov5#11115 --out /dev/stdout")
def test_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    write_whole(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_whole(tmp_path / "pipe", b"through")
    assert reader.communicate(timeout=10)[0] == b"through"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a") as file:
        file.write(b"half" * (1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with whole_file(tmp_path / ("n" * 255)) as file:
        file.write(b"a name as long as they get")
    assert time.time() - (tmp_path / ("n" * 255)).stat().st_mtime < 60


@pytest.mark.slow
@pytest.mark.reported("trl#3872 export --out is a file")
@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("command", ["export", "demo"])
def test_an_out_that_cannot_be_is_one_line_and_2(tmp_path: Path, checkpoint: Path, command: str, place: str) -> None:
    (tmp_path / "file").write_text("x")
    state = '{"global_step": 1, "cursor": 1, "epoch": 1.0, "best_global_step": null, "best_metric": null, '
    state += '"config_digest": "", "base_dtype": "float32", "files": {}}'
    (checkpoint / "trainer_state.json").write_text(state)
    arguments = ["export", str(checkpoint)] if command == "export" else ["demo"]
    done = subprocess.run(
        [sys.executable, "-m", "compose", *arguments, "--out", str(tmp_path / place)], capture_output=True, text=True
    )
    (checkpoint / "trainer_state.json").unlink()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--out" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
