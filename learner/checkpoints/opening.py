"""The checkpoints of a run, and what it takes from the one it goes on from."""

from pathlib import Path

from learner.checkpoints.changes import Circumstances
from learner.checkpoints.checkpoint import Checkpoints, Followed, set_aside_later
from learner.checkpoints.usage import usage_of
from learner.data.opening import Data, digests_of
from learner.plan.progress import Progress
from learner.training.opening import Training
from shared.config.models import Config


def open_checkpoints(
    config: Config,
    training: Training,
    followed: Followed,
    progress: Progress,
    resumed: Path | None,
    folder: Path,
    data: Data,
) -> Checkpoints:
    """Restore all but the weights from the checkpoint `resumed`, if any, and set later ones in `folder` aside."""
    checkpoints = Checkpoints(
        training.loaded,
        training.optimizer,
        followed,
        config.training,
        config.digest,
        Circumstances.of(config, digests_of(config)),
        usage_of(config, data.vocabulary),
    )
    if resumed is not None:
        state = checkpoints.restore(resumed)
        progress.step, progress.cursor, progress.epoch = state.global_step, state.cursor, state.epoch
        progress.saved_step = state.global_step
    set_aside_later(folder, progress.step, in_use=Path(config.model.model), is_new=resumed is None)
    return checkpoints
