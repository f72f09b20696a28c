"""Publishing the learner's weights to every server before a B step whose weights are stale."""

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import torch

from learner.weight_sync.client import WeightChannel
from learner.weight_sync.transports import FileTransport
from shared.streams import task_group
from shared.wire import PolicyVersion, WeightCommit, WeightManifest

Snapshot = Callable[[], Mapping[str, torch.Tensor]]
Body = TypeVar("Body", WeightManifest, WeightCommit)


@dataclass(frozen=True)
class Published:
    """The version that every server holds now, and the seconds it took to get there."""

    version: PolicyVersion
    seconds: float


class WeightPublisher:
    """Keeps the servers at the learner's policy version.

    `snapshot` returns the weights under their Hugging Face names; it and the writing run on `compute`, the lane that
    owns the model. The incarnation is a random word per learner process, so that a server that served another learner
    is always sent everything first.
    """

    def __init__(
        self,
        channels: Sequence[WeightChannel],
        transport: FileTransport,
        snapshot: Snapshot,
        compute: Callable[..., Awaitable[WeightManifest]],
    ) -> None:
        self._channels = tuple(channels)
        self._transport = transport
        self._snapshot = snapshot
        self._compute = compute
        self._incarnation = uuid4().hex[:12]
        self._held: PolicyVersion | None = None

    async def publish_if_stale(self, step: int) -> Published:
        """Bring every server to the weights of `step`; at once when none is stale.

        Every server has agreed before the first one loads. Raises WeightSyncFailed when one refuses or cannot load; it
        then serves its old version or is not ready.
        """
        version = PolicyVersion(incarnation=self._incarnation, step=step)
        if version == self._held:
            return Published(version, 0.0)
        started = time.monotonic()
        manifest = await self._compute(self._write, version)
        try:
            await self._on_each(WeightChannel.prepare, manifest)
            await self._on_each(WeightChannel.commit, WeightCommit(policy_version=version))
        finally:
            self._transport.drop(manifest)
        self._held = version
        return Published(version, time.monotonic() - started)

    async def _on_each(self, send: Callable[[WeightChannel, Body], Coroutine[Any, Any, object]], body: Body) -> None:
        async with task_group() as tasks:
            for channel in self._channels:
                tasks.start_soon(send, channel, body)

    def _write(self, version: PolicyVersion) -> WeightManifest:
        return self._transport.write(self._snapshot(), version, "full")
