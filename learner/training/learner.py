"""One optimizer step: gradients of its packs, summed, then one move of the weights."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.channels.channel import Objective
from learner.losses.terms import PER, Per
from learner.model.batch import PackedBatch
from learner.model.loaded import LoadedModel
from learner.packing.collate import collate
from learner.packing.packer import Pack
from learner.plan.step_plan import StepTotals
from learner.training.optim import StepOptimizer
from learner.training.stopwatch import Stopwatch
from learner.types import LearnedPack, StepResult, TrainingSample
from shared.errors import NonFiniteLoss


@dataclass(frozen=True)
class LaidOutPack:
    """A pack as tensors on the learner's device, with what it was made of and the seconds that took."""

    batch: PackedBatch
    num_tokens: int
    capacity: int
    collate_s: float


@dataclass(frozen=True)
class _Learned:
    """One pack whose gradient is in, with its sums still on the device."""

    record_ids: tuple[str, ...]
    counts: Mapping[Per, float]
    numbers: Tensor
    """[1 + metrics], as PackLoss.numbers"""


class Learner:
    """Owns the model's gradients. Its methods run on the compute lane, but for `lay_out`, which runs beside it.

    `max_grad_norm` 0 switches clipping off.
    """

    def __init__(
        self, loaded: LoadedModel, optimizer: StepOptimizer, *, pad_token_id: int, max_grad_norm: float = 1.0
    ) -> None:
        self.loaded = loaded
        self.optimizer = optimizer
        self._pad_token_id = pad_token_id
        self._max_grad_norm = max_grad_norm
        self._learned: list[_Learned] = []
        self._random = random_state()
        self._copies = None if loaded.device.type == "cpu" else torch.Stream(device=loaded.device)

    def lay_out(self, pack: Pack[TrainingSample]) -> LaidOutPack:
        """Make a pack's tensors. Touches no weights, so the next pack is laid out while this one is learned."""
        started = time.perf_counter()
        batch = collate(pack, self.loaded, pad_token_id=self._pad_token_id)
        if self._copies is not None:
            with self._copies:  # on the stream of the model's work it would wait for the pack that is being learned
                batch = batch.pinned().to(self.loaded.device)
            self._copies.synchronize()
        return LaidOutPack(batch, pack.num_tokens, pack.capacity, time.perf_counter() - started)

    def accumulate(self, pack: LaidOutPack, objective: Objective, totals: StepTotals) -> LearnedPack:
        """Add a pack's gradient to the step's. `totals` are the step's, so packs add up whatever their sizes.

        Nothing on the way waits for the device; the end of it does, so that a learner that is free can start at once.
        """
        watch = Stopwatch(self.loaded.device)
        loss = objective(self.loaded, pack.batch, totals)
        watch.mark()
        loss.total.backward()
        watch.mark()
        self._learned.append(_Learned(pack.batch.record_ids, loss.counts, loss.numbers()))
        forward_s, backward_s = watch.laps()
        return LearnedPack(
            record_ids=pack.batch.record_ids,
            num_tokens=pack.num_tokens,
            capacity=pack.capacity,
            collate_s=pack.collate_s,
            forward_s=forward_s,
            backward_s=backward_s,
        )

    def update(self) -> StepResult:
        """Move the weights by the gradients gathered since the last update, and forget them.

        Raises NonFiniteLoss, naming records, when a loss or gradient is NaN or infinite; the weights and the optimizer
        are then as before, and the gradients are dropped.
        """
        started = time.perf_counter()
        learned, self._learned = self._learned, []
        packs = [each.numbers for each in learned]
        numbers = torch.stack(packs).cpu() if packs else torch.zeros(0, 1 + len(PER))
        norm = self._clipped_norm()
        try:
            _check_finite(learned, numbers[:, 0], norm)
            learning_rate = self.optimizer.learning_rate
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad()
        self._random = random_state()
        loss, *sums = numbers.sum(0).tolist()
        counts = [sum(each.counts[per] for each in learned) for per in PER.values()]
        return StepResult(
            loss=loss,
            terms=dict(zip(PER, zip(sums, counts, strict=True), strict=True)),
            grad_norm=norm,
            learning_rate=learning_rate,
            optimizer_s=time.perf_counter() - started,
        )

    def abandon(self) -> None:
        """Forget what was gathered since the last update, so that the step can be run again as if it had not begun."""
        self._learned = []
        self.optimizer.zero_grad()
        cpu, devices = self._random
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(devices)

    def _clipped_norm(self) -> float:
        """L2 norm of all gradients as they were; scales them down to `max_grad_norm` if they are longer."""
        bound = self._max_grad_norm or float("inf")
        return float(torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, bound))


def random_state() -> tuple[Tensor, list[Tensor]]:
    """The states of torch's generators: the CPU's, and one a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all()


def _check_finite(learned: list[_Learned], pack_losses: Tensor, norm: float) -> None:
    finite = pack_losses.isfinite().tolist()
    if all(finite) and norm < float("inf"):
        return
    suspects = [each for each, good in zip(learned, finite, strict=True) if not good] or learned
    names = ", ".join(name for each in suspects for name in each.record_ids)
    losses = ", ".join(f"{value:g}" for value in pack_losses.tolist())
    raise NonFiniteLoss(
        f"loss or gradient is not finite (losses of the packs: {losses}; gradient norm {norm:g}). The weights are as "
        f"before this step. Records in question: {names}. Look at them, or lower the learning rate"
    )
