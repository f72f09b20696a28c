"""Stands for the learner: says what it was given, then works for FAKE_SECONDS and ends with FAKE_CODE."""

import os
import signal
import sys
import time

from shared.lifeline import end_with_parent

if __name__ == "__main__":
    end_with_parent(grace_s=1.0)
    signal.signal(signal.SIGTERM, lambda *_: (print("stopped", time.monotonic(), flush=True), sys.exit(0)))
    print("pid", os.getpid(), "argv", *sys.argv[1:], flush=True)
    print("token", len(os.environ["BOXLOOP_TOKEN"]), "proxy", os.environ.get("HTTP_PROXY"), flush=True)
    print("a warning", file=sys.stderr, flush=True)
    deadline = time.monotonic() + float(os.environ.get("FAKE_SECONDS", "0"))
    while time.monotonic() < deadline:
        time.sleep(0.02)
    sys.exit(int(os.environ.get("FAKE_CODE", "0")))
