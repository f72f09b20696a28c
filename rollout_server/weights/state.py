"""Which weights the server holds, and what a weight transaction may do next. Pure.

    serving ──prepare──▶ staging ──commit──▶ loading ──loaded──▶ serving (new version)
       ▲                    │                     ├─forgotten─▶ serving (old version), or ─postponed─▶ staging
       └───────abort────────┘                     └─failed─▶ tainted ──prepare, commit, loaded──▶ serving

A tainted server holds half-written weights: it serves nothing until a full update has been loaded. A merged update
is laid over what is held, so it fits only over whole weights of the same incarnation.
"""

from dataclasses import dataclass, replace

from rollout_server.refusal import Refusal
from shared.weight_wire import WeightManifest, WeightPhase, WeightStatus
from shared.wire import PolicyVersion

BUSY_RETRY_S = 1


@dataclass(frozen=True)
class WeightState:
    """`held` None stands for the checkpoint that the server was started with."""

    held: PolicyVersion | None = None
    staged: WeightManifest | None = None
    loading: bool = False
    tainted: bool = False

    @property
    def phase(self) -> WeightPhase:
        if self.loading:
            return "loading"
        if self.tainted:
            return "tainted"
        return "staging" if self.staged else "serving"

    def status(self, received_bytes: int = 0) -> WeightStatus:
        staged = self.staged.policy_version if self.staged else None
        return WeightStatus(phase=self.phase, policy_version=self.held, staged=staged, received_bytes=received_bytes)

    def obstacle(self, manifest: WeightManifest) -> str | None:
        """Why `manifest` cannot be laid over what is held, or None."""
        if manifest.mode == "full":
            return None
        if self.tainted:
            return f"mode {manifest.mode} needs whole weights, and these are tainted; send full"
        if self.held is None or self.held.incarnation != manifest.policy_version.incarnation:
            wanted, held = manifest.policy_version.incarnation, self.held or "the checkpoint it was started with"
            return f"mode {manifest.mode} needs weights of incarnation {wanted}, held is {held}; send full"
        return None

    def prepared(self, manifest: WeightManifest) -> "WeightState":
        """Announce an update; one that was announced before and never committed is forgotten."""
        self._refuse_while_loading("prepare")
        return replace(self, staged=manifest)

    def check_receiving(self, takes_chunks: bool) -> None:
        """Raise Refusal unless chunks can be taken; `takes_chunks` says whether what is staged comes so."""
        self._refuse_while_loading("take a chunk")
        if self.staged is None or not takes_chunks:
            raise Refusal(409, "not_prepared", "no update by transport http is prepared", policy_version=self.held)

    def committing(self, version: PolicyVersion) -> "WeightState":
        """Begin to verify and load what was announced as `version`."""
        self._refuse_while_loading("commit")
        if self.staged is None or self.staged.policy_version != version:
            held = f"{self.staged.policy_version} is" if self.staged else "nothing is"
            raise Refusal(409, "not_prepared", f"commit of {version}, but {held} prepared", policy_version=self.held)
        return replace(self, loading=True)

    def aborted(self, version: PolicyVersion) -> "WeightState":
        """Forget what was announced as `version`; an update of another one stays: it is another learner's."""
        self._refuse_while_loading("abort")
        return self.forgotten() if self.staged and self.staged.policy_version == version else self

    def loaded(self) -> "WeightState":
        """The new weights serve."""
        assert self.staged is not None
        return WeightState(held=self.staged.policy_version)

    def forgotten(self) -> "WeightState":
        """What was announced will not be loaded: nothing was written, what was held is held still."""
        return replace(self, staged=None, loading=False)

    def postponed(self) -> "WeightState":
        """The server was too busy to load: what was announced can be committed later."""
        return replace(self, loading=False)

    def failed(self) -> "WeightState":
        """Loading failed half-way: nothing usable is held."""
        return WeightState(held=None, tainted=True)

    def _refuse_while_loading(self, what: str) -> None:
        if self.loading:
            raise Refusal(
                409,
                "loading",
                f"cannot {what} while {self.staged.policy_version if self.staged else None} is being loaded",
                retry_after_s=BUSY_RETRY_S,
                policy_version=self.held,
            )
