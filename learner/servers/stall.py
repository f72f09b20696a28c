"""Telling a slow server from one that gets nowhere."""

import time
from collections.abc import AsyncGenerator

from shared.errors import ServerUnavailable
from shared.framing import AnyLine
from shared.wire import StreamHeartbeat


async def watch_progress(
    lines: AsyncGenerator[AnyLine, None], server: str, stall_timeout_s: float, infer_timeout_s: float | None
) -> AsyncGenerator[AnyLine, None]:
    """Pass `lines` on while they show progress: answers, or heartbeats with newly generated tokens.

    An open batch is work, whatever the heartbeats say of the engine: one that it has lost would wait for ever.

    Only time spent waiting for the server counts as a stall, however slowly the lines are taken here. Raises
    ServerUnavailable after `stall_timeout_s` seconds without progress, or `infer_timeout_s` after the first line was
    asked for.
    """
    opened_at, stalled_s, num_tokens = time.monotonic(), 0.0, -1
    while True:
        asked_at = time.monotonic()
        line = await anext(lines, None)
        if line is None:
            return
        now = time.monotonic()
        if isinstance(line, StreamHeartbeat) and line.generated_tokens == num_tokens:
            stalled_s += now - asked_at
        else:
            stalled_s = 0.0
        if isinstance(line, StreamHeartbeat):
            num_tokens = line.generated_tokens
        if stalled_s > stall_timeout_s:
            raise ServerUnavailable(
                f"{server} owes answers and made no token for {stalled_s:.1f} s (stall_timeout_s {stall_timeout_s:g})"
            )
        if infer_timeout_s is not None and now - opened_at > infer_timeout_s:
            raise ServerUnavailable(
                f"{server} did not finish a batch in {now - opened_at:.1f} s (infer_timeout_s {infer_timeout_s:g})"
            )
        yield line
