"""The weight transaction: announce, deliver, verify, load; the old version serves until the load begins."""

import math
import time
from collections.abc import AsyncIterable
from contextlib import aclosing
from pathlib import Path

from rollout_server.admission import Admission
from rollout_server.engines.base import Engine, EngineAnswer, WeightSource
from rollout_server.refusal import ManifestRefused, Refusal
from rollout_server.weights.checks import manifest_mismatches
from rollout_server.weights.inlet import Incoming
from rollout_server.weights.state import WeightState
from rollout_server.weights.table import INLETS
from shared.errors import WeightSyncFailed
from shared.weight_wire import (
    SyncMode,
    Transport,
    WeightCommit,
    WeightCommitted,
    WeightManifest,
    WeightPrepared,
    WeightStatus,
)
from shared.wire import WIRE_VERSION, ComponentHealth, PolicyVersion

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
        self._incoming: Incoming | None = None
        self.transports: tuple[Transport, ...] = tuple(INLETS) if weights_root else ()
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
            for inlet in INLETS.values():
                inlet.remove_left_over(self._weights_root)
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
        self._go_on_in(self._state.forgotten())  # first: its room may be needed for the next one
        assert self._weights_root is not None, "without it no transport is served"
        self._incoming = INLETS[manifest.transport].open(manifest, self._weights_root)
        self._state = state
        return WeightPrepared(policy_version=manifest.policy_version)

    async def receive(self, offset: int, pieces: AsyncIterable[bytes]) -> WeightStatus:
        """Take a chunk of the announced update; raises Refusal when it cannot be part of it."""
        self._state.check_receiving(self._incoming is not None and self._incoming.takes_chunks)
        assert self._incoming is not None
        await self._incoming.append(offset, pieces)
        return self.status()

    def abort(self, update: WeightCommit) -> WeightStatus:
        """Forget what was announced as this version; another learner's update stays."""
        self._go_on_in(self._state.aborted(update.policy_version))
        return self.status()

    async def commit(self, update: WeightCommit) -> WeightCommitted:
        """Verify, then load what was announced; batches wait at the door only while it loads.

        Raises ManifestRefused when the data is not what was announced and Refusal when open batches do not end: the
        old version then serves on. Raises WeightSyncFailed when loading fails: the weights are tainted.
        """
        started = time.monotonic()
        self._state = self._state.committing(update.policy_version)
        source = await self._verify()
        verified = time.monotonic()
        loaded = await self._load(source)
        return WeightCommitted(
            policy_version=update.policy_version,
            verify_s=verified - started,
            load_s=loaded - verified,
            canary_s=time.monotonic() - loaded,
        )

    def _check_tried(self) -> None:
        if not self._is_tried:
            raise Refusal(503, "not_ready", f"the server is not ready: {UNTRIED}", retry_after_s=1)

    async def _verify(self) -> WeightSource:
        """What was delivered, once the door is shut; until then any way out but success leaves the old weights."""
        assert self._incoming is not None
        assert self._state.staged is not None
        state = self._state.forgotten()
        try:
            source = await self._incoming.verify()
            state = self._state.postponed()
            await self._admission.shut(f"loading {self._state.staged.policy_version}", self._drain_timeout_s)
            state = self._state
            return source
        finally:
            self._go_on_in(state)

    async def _load(self, source: WeightSource) -> float:
        """Load with the door shut; returns when loading was done. Any way out but success taints."""
        state = self._state.failed()
        try:
            await self._engine.load_weights(source)
            loaded = time.monotonic()
            await check_canary(self._engine)
            state = self._state.loaded()
            return loaded
        finally:
            self._go_on_in(state)
            self._admission.reopen()

    def _go_on_in(self, state: WeightState) -> None:
        """Go on in `state`, and keep what has arrived only as long as it can still be committed."""
        self._state = state
        if state.staged is None:
            self._discard_incoming()

    def _discard_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None


async def check_canary(engine: Engine) -> None:
    """Decode the engine's canary; raises WeightSyncFailed unless every log-probability is finite."""
    async with aclosing(engine.generate([engine.canary()])) as results:
        result = await anext(results)
    if not isinstance(result, EngineAnswer):
        raise WeightSyncFailed(f"the canary was not decoded: {result.code}: {result.message}")
    if not result.token_logprobs or not all(math.isfinite(value) for value in result.token_logprobs):
        raise WeightSyncFailed(f"the canary decodes to log-probabilities {result.token_logprobs}")
