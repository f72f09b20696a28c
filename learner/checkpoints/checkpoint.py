"""Checkpoints: `checkpoint-N/` is a folder of transformers or of PEFT, with what a run needs to go on beside it."""

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from learner.channels.reward_averages import RewardAverages
from learner.checkpoints.changes import Circumstances, changes_between
from learner.model.adapter_files import save_adapters
from learner.model.family import VisionLanguageModel
from learner.model.loaded import LoadedModel
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import BandSums, Guard
from learner.training.optim import StepOptimizer
from shared.checkpoint_facts import ABOUT_THESE_WEIGHTS
from shared.checkpoint_usage import CheckpointUsage, save_usage
from shared.config.training import TrainingSection
from shared.errors import DataError
from shared.whole_folder import whole_folder

LOG = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
TENSORS_FILE = "optimizer.safetensors"
BEST_KEY = "training.metric_for_best_model"
WRITTEN_WITH_THE_MODEL = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class TrainerState:
    """`trainer_state.json`. `files` maps the other files to their sizes in bytes, so that a broken folder shows.

    The learning-rate schedule is not stored: it is a function of the step. `base_dtype` is the type of the weights that
    training began with, before it made float32 masters of them. `guard` is the window that the guard looks at.
    `values` and `data` are the circumstances under which the checkpoint was written, empty in one of before they were.
    `answer_weight` is W̄ of docs/numerics.md, a constant of the run; None in one of before it was. `reward` are the
    averages behind price and scale of R steps, empty before the first of them.
    """

    global_step: int
    cursor: int
    epoch: float
    best_global_step: int | None
    best_metric: float | None
    config_digest: str
    base_dtype: str
    files: dict[str, int]
    guard: Sequence[BandSums] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    answer_weight: float | None = None
    reward: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Followed:
    """What a run carries from step to step besides weights and optimizer: a checkpoint keeps it."""

    guard: Guard
    averages: RewardAverages
    answer_weight: float


class Checkpoints:
    """Writes the checkpoints of one run into its output folder, and throws old ones away.

    All its methods run where the model may be read: on the compute lane, or while that is idle.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        optimizer: StepOptimizer,
        followed: Followed,
        training: TrainingSection,
        config_digest: str,
        circumstances: Circumstances = Circumstances({}, {}),
        usage: CheckpointUsage | None = None,
    ) -> None:
        """`usage` goes into each checkpoint, and may be corrected there: its size is not looked at."""
        self._loaded = loaded
        self._optimizer = optimizer
        self._followed = followed
        self._training = training
        self._digest = config_digest
        self._circumstances = circumstances
        self._usage = usage
        self._companions = loaded.folder
        self._base_dtype = base_dtype(loaded.folder)
        self._saved_epoch = 0
        self._best: tuple[int, float] | None = None

    def score(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Note what an evaluation found; the checkpoint of the best step is never thrown away.

        One without the metric, such as the precision of answers without objects, is no candidate.
        """
        value = metrics.get(self._training.metric_for_best_model)
        if value is not None and (self._best is None or value > self._best[1]):
            self._best = (progress.step, value)

    def due(self, progress: Progress) -> bool:
        """Whether the step that just ended is followed by a checkpoint. Unless none is wanted, the last one is.

        So is one after which the run stops because it was asked to.
        """
        match self._training.save_strategy:
            case "no":
                return False
            case "steps":
                wanted = progress.step % self._training.save_steps == 0
            case "epoch":
                wanted = int(progress.epoch) > self._saved_epoch
            case "best":
                wanted = self._best is not None and self._best[0] == progress.step
        return wanted or progress.done or progress.stop_requested

    def save(self, progress: Progress) -> Path:
        """Write `checkpoint-<step>`, whole or not at all; returns its folder. Raises NotWritten on a full disk."""
        final = self._training.output_dir / f"checkpoint-{progress.step}"
        own = {} if self._training.save_only_model else training_tensors(self._optimizer, self._loaded.model)
        with whole_folder(final, self._num_bytes(own)) as folder:
            self._save_weights(folder)
            copy_companions(self._companions, folder)
            if own:
                save_file(own, folder / TENSORS_FILE)
            (folder / STATE_FILE).write_text(json.dumps(asdict(self._state(progress, folder)), indent=2) + "\n")
            if self._usage is not None:
                save_usage(self._usage, folder)
        self._saved_epoch = int(progress.epoch)
        self._companions = final  # what a resumed run was loaded from may be thrown away
        self._prune(final)
        return final

    def restore(self, folder: Path) -> TrainerState:
        """Take all but the weights from a checkpoint: optimizer, schedule, random numbers, guard, best score.

        A best score of another metric is left there. Raises DataError when it was saved with `save_only_model`.
        """
        state = read_state(folder)
        if TENSORS_FILE not in state.files:
            raise DataError(
                f"{folder}: saved with training.save_only_model, so it cannot be resumed; start from it as model.model"
            )
        _restore_tensors(load_file(folder / TENSORS_FILE), self._optimizer, self._loaded.model)
        self._optimizer.go_on_from(state.global_step)
        self._followed.guard.go_on_from(state.guard)
        self._followed.averages.go_on_from(state.reward)
        if changes := list(changes_between(Circumstances(state.values, state.data), self._circumstances)):
            told = "; ".join(changes) if state.values else "keys that it does not name"
            LOG.warning("%s was written with other values, those of now hold from here on: %s", folder, told)
        self._saved_epoch = int(state.epoch)
        judged_by = self._training.metric_for_best_model
        is_comparable = state.values.get(BEST_KEY, judged_by) == judged_by
        if is_comparable and state.best_global_step is not None and state.best_metric is not None:
            self._best = (state.best_global_step, state.best_metric)
        return state

    def _num_bytes(self, own: Mapping[str, torch.Tensor]) -> int:
        weights = (each for each in self._loaded.model.parameters() if each.requires_grad or not self._loaded.adapters)
        return sum(tensor.nbytes for tensor in (*weights, *own.values()))

    def _save_weights(self, folder: Path) -> None:
        loaded = self._loaded
        if loaded.adapters is None:
            loaded.model.save_pretrained(folder)
        else:
            save_adapters(loaded.model, loaded.adapters, loaded.name, folder)

    def _state(self, progress: Progress, folder: Path) -> TrainerState:
        best_step, best_metric = self._best or (None, None)
        return TrainerState(
            global_step=progress.step,
            cursor=progress.cursor,
            epoch=progress.epoch,
            best_global_step=best_step,
            best_metric=best_metric,
            config_digest=self._digest,
            base_dtype=self._base_dtype,
            files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            guard=self._followed.guard.recent,
            values=self._circumstances.values,
            data=self._circumstances.data,
            answer_weight=self._followed.answer_weight,
            reward=self._followed.averages.kept,
        )

    def _prune(self, written: Path) -> None:
        """Keep the newest `save_total_limit` with the best among them; the best and what was just written stay always.

        Folders of later steps are not this run's, and none of its business.
        """
        limit = self._training.save_total_limit
        if limit is None:
            return
        older = [each for each in checkpoints_in(written.parent) if step_of(each) < step_of(written)]
        best = f"checkpoint-{self._best[0]}" if self._best else ""
        older.sort(key=lambda folder: folder.name == best)  # stable: the best counts as the second newest
        for folder in older[: max(0, len(older) + 1 - limit)]:
            if folder.name != best:
                shutil.rmtree(folder)


def latest_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint of a run; broken ones are skipped with a warning."""
    for folder in reversed(checkpoints_in(root)):
        try:
            read_state(folder)
        except DataError as error:
            LOG.warning("skipped: %s", error)
        else:
            return folder
    return None


def set_aside_later(root: Path, step: int, in_use: Path, *, is_new: bool = False) -> None:
    """Move checkpoints of later steps than `step` into `abandoned-K/`: a run goes on in `root` without them.

    They belong to a history that was given up, and would pass for this run's newest. The one that the run starts from,
    `in_use`, stays. A run that `is_new` says how to go on with what it found.
    """
    later = [each for each in checkpoints_in(root) if step_of(each) > step and each.resolve() != in_use.resolve()]
    if not later:
        return
    aside = next(path for number in count(1) if not (path := root / f"abandoned-{number}").exists())
    aside.mkdir()
    for folder in later:
        folder.rename(aside / folder.name)
    names = ", ".join(folder.name for folder in later)
    if is_new:
        newest = aside / later[-1].name
        LOG.warning(
            "%s holds an earlier run; this one starts anew and moved its checkpoints to %s: %s. To go on with it "
            "instead, stop, and set training.resume_from_checkpoint: %s",
            root, aside, names, newest,
        )  # fmt: skip
        return
    LOG.warning("the run goes on from step %d; moved to %s, remove what is not wanted: %s", step, aside, names)


def checkpoints_in(root: Path) -> list[Path]:
    """A run's checkpoint folders, oldest first."""
    found = [path for path in root.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("checkpoint-"))


def read_state(folder: Path) -> TrainerState:
    """Read a checkpoint's state; raises DataError when the folder is not whole, saying what is missing."""
    try:
        state = TrainerState(**json.loads((folder / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: {STATE_FILE} cannot be read ({error}); use another checkpoint") from error
    for name, size in state.files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            raise DataError(f"{folder / name} has {found} bytes, {size} were written; use another checkpoint")
    return state


def base_dtype(folder: Path) -> str:
    """The type of the weights that a model folder goes back to; checkpoints of ours say it of their own base."""
    if (folder / STATE_FILE).is_file():
        return read_state(folder).base_dtype
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        for key in ("dtype", "torch_dtype"):
            if section.get(key):
                return str(section[key])
    return "float32"


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what belongs to a model besides its weights: tokenizer, processors, chat template, licence."""
    for path in source.iterdir():
        own = (
            path.name in (STATE_FILE, TENSORS_FILE, *ABOUT_THESE_WEIGHTS, *WRITTEN_WITH_THE_MODEL)
            or "safetensors" in path.name
        )
        taken = own or (folder / path.name).exists()
        if path.is_file() and not taken and path.suffix in (".json", ".jinja", ".txt", ".model", ".md", ""):
            shutil.copyfile(path, folder / path.name)


def training_tensors(optimizer: StepOptimizer, model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Optimizer state as "<optimizer>/<parameter>/<key>" and generator states as "rng/<device>"."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{kind}/{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for kind, each in optimizer.optimizers.items()
        for parameter, state in each.state.items()
        for key, value in state.items()
    }
    return tensors | {f"rng/{device}": state for device, state in _generator_states()}


def _restore_tensors(tensors: dict[str, torch.Tensor], optimizer: StepOptimizer, model: VisionLanguageModel) -> None:
    """Undo `training_tensors`. Torch itself brings each tensor to where its optimizer wants it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    states: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for path, value in tensors.items():
        owner, _, key = path.rpartition("/")
        if owner == "rng":
            _restore_generator(key, value)
        else:
            states[owner][key] = value
    for kind, each in optimizer.optimizers.items():
        parameters = (parameter for group in each.param_groups for parameter in group["params"])
        owners = enumerate(f"{kind}/{names[parameter]}" for parameter in parameters)
        state = {number: states[owner] for number, owner in owners if owner in states}
        each.load_state_dict({**each.state_dict(), "state": state})


def _generator_states() -> Iterator[tuple[str, torch.Tensor]]:
    yield "cpu", torch.get_rng_state()
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}", torch.cuda.get_rng_state(index)


def _restore_generator(device: str, state: torch.Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state)
    elif torch.device(device).index < torch.cuda.device_count():
        torch.cuda.set_rng_state(state, device)
