"""The section `custom.extra.rollout_matching`: decoding, matching, the rollout servers and their weights."""

from typing import Literal

from pydantic import Field

from shared.config.paths import UserPath
from shared.config.section import Section, pick
from shared.weight_wire import Transport
from shared.wire import MAX_COUNT, Count, RepeatTerminate, RepetitionPenalty, Temperature, TopP


class RepeatTerminateSection(Section):
    """When an answer that loops is ended. A limit of 0 is off."""

    enabled: bool = Field(default=False, description="end looping answers")
    min_new_tokens: Count = Field(default=0, description="leave shorter answers alone")
    max_consecutive_token_repeats: Count = Field(default=0, description="same token in a row")
    ngram_size: Count = Field(default=0, description="length of the phrase that is watched")
    ngram_repeats: Count = Field(default=0, description="times the phrase may stand in a row")
    max_object_keys: Count = Field(default=0, description="objects in one answer")

    @property
    def rule(self) -> RepeatTerminate | None:
        """As servers are told it; None = leave looping answers alone."""
        return pick(RepeatTerminate, self) if self.enabled else None


class SyncSection(Section):
    """How weights reach the servers."""

    mode: Literal["auto", "full", "merged", "adapter"] = Field(
        default="auto", description="what is sent after a first full update; auto = merged in adapter runs, else full"
    )
    fallback_to_full: bool = Field(default=True, description="send everything after a merged update that failed")
    transport: Transport = Field(default="file", description="file needs a folder both processes see")
    weights_root: UserPath | None = Field(
        default=None, description="folder that weights pass through, as large as they are; null = in shared memory"
    )


class ServerAddress(Section):
    """One rollout server that is already running."""

    base_url: str = Field(pattern=r"^https?://[^\s/]+/?$", description="such as http://127.0.0.1:8000")
    group_port: int | None = Field(
        default=None, ge=1, le=65535, description="not used, with a warning: weights travel by sync.transport"
    )


class ServerSection(Section):
    """Where the servers are and how long the learner waits for them."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address a server binds")
    timeout_s: float = Field(
        default=240.0,
        gt=0,
        description="longest wait for an answer that is no rollout, and for a server when none is left",
    )
    infer_timeout_s: float | None = Field(
        default=None, gt=0, description="longest time of one batch of rollouts; null = none"
    )
    stall_timeout_s: float = Field(
        default=120.0, gt=0, description="a server with work and no token for so long is stalled, a silent one frozen"
    )
    token_file: UserPath | None = Field(
        default=None, description="file with the token of servers that were started by hand"
    )
    image_root: UserPath | None = Field(
        default=None, description="folder that servers may read images from; the learner sends its own"
    )
    servers: tuple[ServerAddress, ...] = Field(
        default=(), description="running servers; empty = the supervisor starts them"
    )


class VllmSection(Section):
    """The rollout server, whichever its engine."""

    mode: Literal["server", "colocate"] = Field(default="server", description="own process; colocate is not built")
    max_model_len: int | None = Field(
        default=None, ge=1, description="longest prompt + answer; null = global_max_length"
    )
    enable_lora: bool = Field(default=False, description="must be false: adapters reach servers merged")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="share of GPU memory the engine takes")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs of one server")
    enforce_eager: bool = Field(default=False, description="no CUDA graphs")
    max_num_seqs: int = Field(default=64, ge=1, description="answers decoded side by side in one server")
    sync: SyncSection = Field(default=SyncSection(), description="how weights reach the servers")
    server: ServerSection = Field(default=ServerSection(), description="addresses and time limits")


class MonitorDumpSection(Section):
    """Samples written to `pictures/` while training."""

    enabled: bool = Field(default=False, description="write samples as JSON and pictures")
    every_steps: int = Field(default=100, ge=1, description="optimizer steps between two dumps")
    max_events: int = Field(default=20, ge=0, description="dumps of a run")
    max_samples: int = Field(default=4, ge=1, description="samples of a dump")
    max_text_chars: int = Field(default=4000, ge=0, description="characters of an answer that are kept")


class RolloutMatchingSection(Section):
    """How answers are decoded and matched."""

    rollout_backend: Literal["vllm", "hf"] = Field(
        default="vllm", description="engine of the rollout server; hf = transformers"
    )
    max_new_tokens: int = Field(default=1024, ge=1, le=MAX_COUNT, description="longest answer")
    decode_mode: Literal["greedy"] = Field(default="greedy", description="the only value; temperature above 0 samples")
    temperature: Temperature = Field(default=0.0, description="0 = greedy, else at least 0.01")
    top_p: TopP = Field(default=1.0, description="nucleus sampling; 1 = off")
    top_k: Count = Field(default=0, description="sample among so many tokens; 0 = all")
    repetition_penalty: RepetitionPenalty = Field(default=1.0, description="1 = off")
    repeat_terminate: RepeatTerminateSection = Field(
        default=RepeatTerminateSection(), description="ends looping answers"
    )
    candidate_top_k: int = Field(default=5, ge=1, description="ground-truth candidates of a prediction")
    maskiou_resolution: int = Field(default=256, ge=8, description="canvas of the mask IoU, pixels a side")
    maskiou_gate: float = Field(default=0.3, ge=0, le=1, description="pairs with a lower IoU are forbidden")
    fp_cost: float = Field(default=1.0, ge=0, description="cost of a prediction without a match")
    fn_cost: float = Field(default=1.0, ge=0, description="cost of a ground-truth object without a match")
    post_rollout_pack_scope: str = Field(default="micro", description="must be micro")
    max_lag: int = Field(
        default=0, ge=0, description="optimizer steps that decoding weights may be behind; 0 = on-policy"
    )
    deterministic: bool = Field(
        default=False, description="request order and fixed batches: bitwise repeatable on a CPU"
    )
    rollout_generate_batch_size: int | None = Field(
        default=None, ge=1, description="records of a micro-step when packing"
    )
    rollout_infer_batch_size: int | None = Field(default=None, ge=1, description="samples in one request to a server")
    vllm: VllmSection = Field(default=VllmSection(), description="the rollout server")
    monitor_dump: MonitorDumpSection = Field(default=MonitorDumpSection(), description="samples written while training")
