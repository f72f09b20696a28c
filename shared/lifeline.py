"""No orphans: a child process ends when its supervisor is gone, however the supervisor went.

The supervisor holds the write end of a pipe and nobody else does. The child inherits the read end, its number in
`LIFELINE_VARIABLE`, and reads from it: nothing is ever written, so the read returns only when the supervisor is dead,
SIGKILL included. A process that was started by hand has no such variable and goes on as it likes.
"""

import os
import signal
import threading
import time

LIFELINE_VARIABLE = "BOXLOOP_LIFELINE_FD"
"""Environment variable with the number of the inherited file descriptor."""


def end_with_parent(grace_s: float = 10.0) -> bool:
    """Watch the lifeline on a daemon thread; call it first thing in `__main__`.

    When the supervisor is gone the process group gets SIGTERM, and after `grace_s` seconds SIGKILL. The process must
    lead its group, as one the supervisor started does. Returns whether there is a lifeline.
    """
    number = os.environ.pop(LIFELINE_VARIABLE, None)  # a child of ours is not to read ours
    if number is None:
        return False
    descriptor = int(number)
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_at_eof, args=(descriptor, grace_s), name="lifeline", daemon=True).start()
    return True


def _end_at_eof(descriptor: int, grace_s: float) -> None:
    while os.read(descriptor, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(grace_s)
    os.killpg(os.getpgrp(), signal.SIGKILL)
