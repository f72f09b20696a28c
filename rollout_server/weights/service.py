"""The weight transaction: announce, deliver, verify, load; the old version serves until the load begins."""

import time
from collections.abc import AsyncIterable
from pathlib import Path

import anyio

from rollout_server.admission import Admission
from rollout_server.engines.base import Engine
from rollout_server.refusal import ManifestRefused, Refusal
from rollout_server.weights.canary import check_canary
from rollout_server.weights.checks import file_mismatches, manifest_mismatches, shared_file
from rollout_server.weights.incoming import IncomingFile, remove_left_over
from rollout_server.weights.state import WeightState
from shared.wire import (
    WIRE_VERSION,
    ComponentHealth,
    PolicyVersion,
    SyncMode,
    Transport,
    WeightCommit,
    WeightCommitted,
    WeightManifest,
    WeightPrepared,
    WeightStatus,
)

UNTRIED = "the weights of the checkpoint have not been tried yet"


class WeightService:
    """The weights of one engine. `weights_root` holds what is staged; None takes no updates."""

    def __init__(self, engine: Engine, admission: Admission, weights_root: Path | None, drain_timeout_s: float) -> None:
        self._engine = engine
        self._admission = admission
        self._weights_root = weights_root
        self._drain_timeout_s = drain_timeout_s
        self._state = WeightState()
        self._is_tried = False
        self._incoming: IncomingFile | None = None
        self.transports: tuple[Transport, ...] = ("file", "http") if weights_root else ()
        self.modes: tuple[SyncMode, ...] = ("full", "merged") if weights_root else ()

    @property
    def held(self) -> PolicyVersion | None:
        return self._state.held

    def status(self) -> WeightStatus:
        return self._state.status(self._incoming.received_bytes if self._incoming else 0)

    async def start(self) -> None:
        """Clear the folder of what killed servers left, and try the checkpoint's weights; nothing is served before.

        To be called when the engine has started. Raises WeightSyncFailed when the canary finds the weights broken.
        """
        if self._weights_root:
            self._weights_root.mkdir(parents=True, exist_ok=True)
            remove_left_over(self._weights_root)
        await check_canary(self._engine)
        self._is_tried = True

    def close(self) -> None:
        """Remove what has arrived of an update."""
        self._discard_incoming()

    def check_servable(self, wanted: PolicyVersion | None) -> None:
        """Raise Refusal when the weights are broken or are not those of `wanted` (None = any)."""
        self._check_tried()
        if self._state.tainted:
            raise Refusal(
                503, "weights_tainted", "the last weight load failed; a full resend is needed", retry_after_s=5
            )
        if wanted is not None and wanted != self.held:
            raise Refusal(409, "policy_version", f"asked for {wanted}, held is {self.held}", policy_version=self.held)

    def health(self) -> ComponentHealth:
        """Ready when the weights are whole and an update could be taken."""
        reason = ""
        if not self._is_tried:
            reason = UNTRIED
        elif self._state.tainted:
            reason = "tainted: the last weight load failed; a full resend is needed"
        elif self._state.loading:
            reason = "a weight update is being loaded"
        elif self._weights_root and not self._weights_root.is_dir():
            reason = f"weights root {self._weights_root} is not a directory"
        return ComponentHealth(name="weights", live=True, ready=not reason, reason=reason)

    def prepare(self, manifest: WeightManifest) -> WeightPrepared:
        """Check an announced update against the model; raises ManifestRefused with every mismatch."""
        self._check_tried()
        if manifest.wire_version != WIRE_VERSION:
            raise ManifestRefused((f"wire version {manifest.wire_version}, this server speaks {WIRE_VERSION}",))
        state = self._state.prepared(manifest)
        mismatches = manifest_mismatches(manifest, self._engine.tensors(), self.transports)
        if obstacle := self._state.obstacle(manifest):
            mismatches.insert(0, obstacle)
        if mismatches:
            raise ManifestRefused(tuple(mismatches))
        self._settle(self._state.forgotten())  # first: its room may be needed for the next one
        if manifest.transport == "http":
            assert self._weights_root is not None
            self._incoming = IncomingFile(self._weights_root, manifest.num_bytes)
        self._state = state
        return WeightPrepared(policy_version=manifest.policy_version)

    async def receive(self, offset: int, pieces: AsyncIterable[bytes]) -> WeightStatus:
        """Take a chunk of the announced update; raises Refusal when it cannot be part of it."""
        self._state.receiving()
        assert self._incoming is not None
        await self._incoming.append(offset, pieces)
        return self.status()

    def abort(self, update: WeightCommit) -> WeightStatus:
        """Forget what was announced as this version; another learner's update stays."""
        self._settle(self._state.aborted(update.policy_version))
        return self.status()

    async def commit(self, update: WeightCommit) -> WeightCommitted:
        """Verify, then load what was announced; batches wait at the door only while it loads.

        Raises ManifestRefused when the data is not what was announced and Refusal when open batches do not end: the
        old version then serves on. Raises WeightSyncFailed when loading fails: the weights are tainted.
        """
        started = time.monotonic()
        self._state = self._state.committing(update.policy_version)
        file = await self._verified()
        verified = time.monotonic()
        loaded = await self._load(file)
        return WeightCommitted(
            policy_version=update.policy_version,
            verify_s=verified - started,
            load_s=loaded - verified,
            canary_s=time.monotonic() - loaded,
        )

    def _check_tried(self) -> None:
        if not self._is_tried:
            raise Refusal(503, "not_ready", f"the server is not ready: {UNTRIED}", retry_after_s=1)

    async def _verified(self) -> Path:
        """The delivered file, once the door is shut; until then any way out but success leaves the old weights."""
        manifest = self._state.staged
        assert manifest is not None
        state = self._state.forgotten()
        try:
            file = self._delivered(manifest)
            digest = self._incoming.digest() if self._incoming else None
            mismatches = await anyio.to_thread.run_sync(file_mismatches, file, manifest, digest)
            if mismatches:
                raise ManifestRefused(tuple(mismatches))
            state = self._state.postponed()
            await self._admission.shut(f"loading {manifest.policy_version}", self._drain_timeout_s)
            state = self._state
            return file
        finally:
            self._settle(state)

    async def _load(self, file: Path) -> float:
        """Load with the door shut; returns when loading was done. Any way out but success taints."""
        state = self._state.failed()
        try:
            await self._engine.load_weights(file)
            loaded = time.monotonic()
            await check_canary(self._engine)
            state = self._state.loaded()
            return loaded
        finally:
            self._settle(state)
            self._admission.reopen()

    def _delivered(self, manifest: WeightManifest) -> Path:
        if self._incoming is not None:
            return self._incoming.path
        assert self._weights_root is not None
        return shared_file(manifest, self._weights_root)

    def _settle(self, state: WeightState) -> None:
        """Go on in `state`, and keep what has arrived only as long as it can still be committed."""
        self._state = state
        if state.staged is None:
            self._discard_incoming()

    def _discard_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None
