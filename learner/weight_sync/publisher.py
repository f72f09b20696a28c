"""Publishing the learner's weights to every server before a B step whose weights are stale."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio
import torch

from learner.servers.http import PROBE_TIMEOUT_S
from learner.servers.weights import ServerAway, WeightChannel
from learner.weight_sync.folder_lock import lock_folder
from learner.weight_sync.outlet import Offer, Outlet
from shared.errors import WeightSyncFailed
from shared.streams import task_group
from shared.weight_wire import SyncMode, WeightCommit
from shared.wire import PolicyVersion

LOG = logging.getLogger(__name__)

Snapshot = Callable[[], Mapping[str, torch.Tensor]]
Failures = dict[str, WeightSyncFailed]
Compute = Callable[..., Awaitable[Offer]]
"""Runs a function where the model may be read: on the compute lane."""

SILENT_TIMEOUT_S = 0.5
"""How long a server is asked that was away at the last publish: it is waited for no more, `resend` brings it up."""

_REPLACED_BY: Mapping[SyncMode, frozenset[SyncMode]] = {
    "full": frozenset(("full", "merged")),
    "merged": frozenset(("merged",)),
}


@dataclass(frozen=True)
class Snapshots:
    """How to look at the learner's weights under their Hugging Face names; see snapshot.py.

    `merged` None = everything is sent each time.
    """

    full: Snapshot
    merged: Snapshot | None = None


@dataclass(frozen=True)
class Published:
    """The version that servers hold now, the seconds it took to get there, and the bytes sent to all of them.

    `left_out` names the servers that could not take it.
    """

    version: PolicyVersion
    seconds: float = 0.0
    sent_bytes: int = 0
    left_out: tuple[str, ...] = ()


class WeightPublisher:
    """Keeps the servers at the learner's policy version.

    A server is sent everything unless it holds whole weights of this learner. The incarnation is a random word per
    learner process, so that a server that served another one is always sent everything first. Snapshots and their
    writing run on `compute`, the lane that owns the model. A server that does not say what it holds is left out, so
    that a frozen one holds up a publish for one probe. The newest full file under `root` and the newest merged one are
    kept until the next, so that a server that comes back can be brought up at any time, whatever the learner's own
    weights have become; the second takes at most as much room again as the first.
    """

    def __init__(
        self,
        channels: Sequence[WeightChannel],
        outlet: Outlet,
        root: Path,
        snapshots: Snapshots,
        compute: Compute,
        *,
        fallback_to_full: bool = True,
    ) -> None:
        self._channels = {channel.name: channel for channel in channels}
        self._outlet = outlet
        self._root = root
        self._snapshots = snapshots
        self._compute = compute
        self._fallback_to_full = fallback_to_full
        self._incarnation = uuid4().hex[:12]
        self._published: Published | None = None
        self._kept: dict[SyncMode, Offer] = {}
        self._away: frozenset[str] = frozenset()
        self._claim = ExitStack()
        self._turn = anyio.Lock()

    async def publish_if_stale(self, step: int) -> Published:
        """Bring the servers to the weights of `step`; at once when they were published before.

        A server that cannot take them is left out; it then serves its old version or is not ready. Raises
        WeightSyncFailed when no server is left, unless one may come back: `resend` then brings it up.
        """
        version = PolicyVersion(incarnation=self._incarnation, step=step)
        async with self._turn:
            if self._published is not None and self._published.version == version:
                return Published(version, left_out=self._published.left_out)
            self._published = await self._publish(version)
            return self._published

    async def resend(self, server: str) -> PolicyVersion:
        """Bring the one server of this name to the version that was published last, and return it.

        May be called while a step runs: what is sent was written at the publish. Raises WeightSyncFailed.
        """
        async with self._turn:
            if self._published is None:
                raise WeightSyncFailed(f"{server} cannot be brought up: nothing has been published yet")
            await self._channels[server].status(PROBE_TIMEOUT_S)
            for offer in self._kept.values():
                await self._bring(offer, self._channels[server])
            left_out = tuple(name for name in self._published.left_out if name != server)
            self._published, self._away = replace(self._published, left_out=left_out), self._away - {server}
            return self._published.version

    def close(self) -> None:
        """Remove what was kept."""
        for offer in self._kept.values():
            offer.drop()
        self._kept = {}
        self._claim.close()

    async def _publish(self, version: PolicyVersion) -> Published:
        started = time.monotonic()
        if self._published is None:
            with suppress(OSError):  # a folder that cannot be written is told when it is written
                self._claim.enter_context(lock_folder(self._root, self._incarnation))
        merging, failures = await self._asked()
        whole = [channel for name, channel in self._channels.items() if channel not in merging and name not in failures]
        merged = full = _Sent()
        # Something is written even if nobody can take it now: a server that comes back is brought up with it.
        merges = self._snapshots.merged is not None and "full" in self._kept
        if merging or (merges and not whole):
            merged = await self._send("merged", version, merging)
        if merged.failures and self._fallback_to_full:
            LOG.warning("step %d: %s; sending everything", version.step, describe(merged.failures))
            whole += [self._channels[name] for name in merged.failures]
        else:
            failures |= merged.failures
        if whole or not merges:
            full = await self._send("full", version, whole)
            failures |= full.failures
        self._check_left(version, failures)
        self._away = frozenset(name for name, failure in failures.items() if isinstance(failure, ServerAway))
        seconds = time.monotonic() - started
        return Published(version, seconds, merged.num_bytes + full.num_bytes, tuple(failures))

    def _check_left(self, version: PolicyVersion, failures: Failures) -> None:
        """Tell which servers are left out; raise when that is all of them and none of those may come back."""
        may_come_back = any(isinstance(failure, ServerAway) for failure in failures.values())
        if failures and len(failures) == len(self._channels) and not may_come_back:
            raise join_errors(failures)
        if failures:
            LOG.warning("step %d: %s; left out of it", version.step, describe(failures))

    async def _asked(self) -> tuple[list[WeightChannel], Failures]:
        """The servers that can be sent what changed, over whole weights of this learner; and those that say nothing."""
        able: list[WeightChannel] = []

        async def ask(channel: WeightChannel) -> None:
            known_away = channel.name in self._away
            held = (await channel.status(SILENT_TIMEOUT_S if known_away else PROBE_TIMEOUT_S)).policy_version
            if self._snapshots.merged and held is not None and held.incarnation == self._incarnation:
                able.append(channel)

        return able, await for_each_server(self._channels.values(), ask)

    async def _send(self, mode: SyncMode, version: PolicyVersion, channels: Sequence[WeightChannel]) -> "_Sent":
        """Write an update and bring it to `channels`."""
        # A merged file lies over the full one. What is replaced goes first, so that two never fill the memory.
        for stale in _REPLACED_BY[mode] & self._kept.keys():
            self._kept.pop(stale).drop()
        offer = self._kept[mode] = await self._compute(self._offer, mode, version)
        failures = await for_each_server(channels, partial(self._bring, offer))
        return _Sent(failures, len(channels) * offer.manifest.num_bytes)

    def _offer(self, mode: SyncMode, version: PolicyVersion) -> Offer:
        snapshot = self._snapshots.full if mode == "full" else self._snapshots.merged
        assert snapshot is not None
        return self._outlet.offer(self._root, snapshot(), version, mode)

    async def _bring(self, offer: Offer, channel: WeightChannel) -> None:
        """The whole transaction with one server. One that fails is taken back, so that nothing of it is kept there."""
        commit = WeightCommit(policy_version=offer.manifest.policy_version)
        await channel.prepare(offer.manifest)
        try:
            await offer.deliver(channel)
            await channel.commit(commit)
        except WeightSyncFailed:
            with suppress(WeightSyncFailed):
                await channel.abort(commit)
            raise


@dataclass(frozen=True)
class _Sent:
    """What became of one update: the servers that did not take it, and the bytes sent to all."""

    failures: Failures = field(default_factory=dict)
    num_bytes: int = 0


async def for_each_server(
    channels: Iterable[WeightChannel], act: Callable[[WeightChannel], Awaitable[None]]
) -> Failures:
    """Do `act` with all channels side by side; returns, by name, why it failed with some."""
    failures: Failures = {}

    async def attempt(channel: WeightChannel) -> None:
        try:
            await act(channel)
        except WeightSyncFailed as error:
            failures[channel.name] = error

    async with task_group() as tasks:
        for channel in channels:
            tasks.start_soon(attempt, channel)
    return failures


def describe(failures: Failures) -> str:
    """All reasons as one line."""
    return "; ".join(map(str, failures.values()))


def join_errors(failures: Failures) -> WeightSyncFailed:
    """The first failure, bearing the others as notes."""
    first, *others = failures.values()
    for other in others:
        first.add_note(str(other))
    return first
