"""Where a run's weights come from."""

from dataclasses import dataclass
from pathlib import Path

from learner.checkpoints.checkpoint import latest_checkpoint, read_state
from shared.checkpoint_facts import base_model, holds_adapters
from shared.config.training import TrainingSection, TunerSection
from shared.errors import ConfigError


@dataclass(frozen=True)
class Start:
    """`model` is a directory or hub id of whole weights; `adapters` a folder of adapters that go on them, if any.

    `resumed` is the checkpoint whose optimizer, schedule and place in the data go on, None in a new run;
    `answer_weight` is what its run divided the cross-entropy by, where it says so.
    """

    model: str
    adapters: Path | None
    resumed: Path | None
    answer_weight: float | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the weights; None of a model that has none here."""
        source = self.resumed or self.adapters or Path(self.model)
        return source if source.is_dir() else None


def start_of(model: str, tuner: TunerSection, training: TrainingSection) -> Start:
    """Read `model.model` and `training.resume_from_checkpoint`, each of which may be a folder of adapters.

    Adapters go on `model.model`, from which servers start too. Raises ConfigError when there is nothing to resume, or
    when what there is does not fit `tuner.train_type`, and DataError when the checkpoint to resume is not whole.
    """
    resumed = _resumed(training)
    source = model if resumed is None else str(resumed)
    key = "model.model" if resumed is None else "training.resume_from_checkpoint"
    adapters = Path(source) if holds_adapters(source) else None
    if adapters is not None and tuner.train_type != "lora":
        raise ConfigError(
            f"{key}: {source} holds adapters, but tuner.train_type is {tuner.train_type}; set it to lora, or "
            f"make a whole model of it: boxloop export {source} --out DIR"
        )
    if resumed is not None and adapters is None and tuner.train_type == "lora":
        raise ConfigError(
            f"{key}: {source} was trained whole, but tuner.train_type is lora; start from it as model.model"
        )
    whole = resumed is not None and adapters is None
    answer_weight = None if resumed is None else read_state(resumed).answer_weight
    return Start(source if whole else base_model(model), adapters, resumed, answer_weight)


def _resumed(training: TrainingSection) -> Path | None:
    wanted = training.resume_from_checkpoint
    if not wanted:
        return None
    if wanted is not True:
        read_state(Path(wanted))
        return Path(wanted)
    found = latest_checkpoint(training.output_dir)
    if found is None:
        raise ConfigError(
            f"training.resume_from_checkpoint: true, but {training.output_dir} holds no whole checkpoint; "
            "set it to null to start anew"
        )
    return found
