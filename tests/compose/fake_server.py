"""Stands for a rollout server: answers `/ready/` and ends as its FAKE_SERVER mode says. Run by `python -m`."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shared.lifeline import end_with_parent

NOT_READY = b'{"ok": false, "components": [{"name": "engine", "live": true, "ready": false, "reason": "loading"}]}'


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        never = MODE == "never_ready"
        self.send_response(503 if never else 200)
        self.end_headers()
        self.wfile.write(NOT_READY if never else b"{}")


MODE = os.environ.get("FAKE_SERVER", "")

if __name__ == "__main__":
    end_with_parent(grace_s=1.0)
    if MODE == "dies_at_start":
        sys.exit("the model folder is empty")
    if MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("pid", os.getpid(), "threads", os.environ["OMP_NUM_THREADS"], "argv", *sys.argv[1:], flush=True)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    print("pid", grandchild.pid, flush=True)
    if MODE == "dies_later":
        threading.Timer(0.7, lambda: (print("out of memory", flush=True), os._exit(9))).start()
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if MODE != "deaf":
        signal.signal(signal.SIGTERM, lambda *_: (print("stopped", time.monotonic(), flush=True), sys.exit(0)))
    while True:
        time.sleep(0.05)
