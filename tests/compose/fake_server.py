"""Stands for a rollout server: answers probes and goes wrong as its FAKE_SERVER mode says. Run by `python -m`.

It goes wrong once the learner is there. A mode that ends in `_once` goes wrong in the first process of a run only.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from shared.lifeline import end_with_parent

REPORT = b'{"ok": false, "components": [{"name": "engine", "live": true, "ready": false, "reason": "%s"}]}'
MODE = os.environ.get("FAKE_SERVER", "")
FAILED = threading.Event()
FOLDER = Path(sys.argv[sys.argv.index("--config") + 1]).parent
"""Of the run."""


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        reason = b""
        if MODE == "never_ready":
            reason = b"loading"
        elif FAILED.is_set() and self.path == "/health/":
            reason = b"no token for 9 s"
        self.send_response(503 if reason else 200)
        self.end_headers()
        self.wfile.write(REPORT % reason if reason else b"{}")


def die() -> None:
    print("out of memory", flush=True)
    os._exit(9)


GOES_WRONG = {
    "dies_later": die,
    "dies_once": die,
    "fails_once": FAILED.set,
    "freezes_once": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def go_wrong() -> None:
    while not (FOLDER / "learner.log").exists():
        time.sleep(0.02)
    GOES_WRONG[MODE]()


def is_first() -> bool:
    """Whether no other process of this run has asked."""
    mark = FOLDER / "first"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    end_with_parent(grace_s=1.0)
    if MODE == "dies_at_start":
        sys.exit("the model folder is empty")
    if MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("pid", os.getpid(), "threads", os.environ["OMP_NUM_THREADS"], "argv", *sys.argv[1:], flush=True)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    print("pid", grandchild.pid, flush=True)
    if MODE in GOES_WRONG and (not MODE.endswith("_once") or is_first()):
        threading.Thread(target=go_wrong, daemon=True).start()
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if MODE != "deaf":
        signal.signal(signal.SIGTERM, lambda *_: (print("stopped", time.monotonic(), flush=True), sys.exit(0)))
    while True:
        time.sleep(0.05)
