"""Monitor dumps: every so many steps a few rollouts as JSON and as pictures, to see what the model is being taught."""

from collections.abc import Sequence
from pathlib import Path

import orjson
from anyio import to_thread

from learner.detection.vocabulary import CoordinateVocabulary
from learner.reporting.pictures import PictureSample, try_to_draw
from learner.reporting.step_report import StepRecord
from learner.types import TaughtRollout
from shared.config.rollout import MonitorDumpSection


class Monitor:
    """Writes `pictures/step-N-RECORD.{json,png}` for the first samples of a B step that is due.

    A run that goes on after `resumed_at` finished steps goes on with the dumps that it made until then.
    """

    def __init__(
        self, section: MonitorDumpSection, folder: Path, vocabulary: CoordinateVocabulary, resumed_at: int = 0
    ) -> None:
        self._section = section
        self._folder = folder
        self._vocabulary = vocabulary
        dumped = [step for step in _dumped_steps(folder) if step <= resumed_at]
        self._next_step = max(dumped) - 1 + section.every_steps if dumped else 0
        self._num_dumps = len(dumped)

    async def write(self, step: StepRecord) -> None:
        """Dump the first B step at or after each `every_steps`, at most `max_events` times."""
        section = self._section
        if (
            not section.enabled
            or not step.learned
            or step.step < self._next_step
            or self._num_dumps >= section.max_events
        ):
            return
        self._next_step = step.step + section.every_steps
        self._num_dumps += 1
        await to_thread.run_sync(self._dump, step.step + 1, step.learned[: section.max_samples])

    def _dump(self, step: int, samples: Sequence[TaughtRollout]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for learned in samples:
            record = learned.rollout.request.encoded.record
            name = f"step-{step:06d}-{record.record_id.replace(':', '-').replace('/', '-')}"
            details = orjson.dumps(self._details(step, learned), option=orjson.OPT_INDENT_2)
            (self._folder / f"{name}.json").write_bytes(details)
            picture = PictureSample(record, learned.parsed.predictions, learned.match, appended=learned.match.missing)
            try_to_draw(picture, self._folder / f"{name}.png")

    def _details(self, step: int, learned: TaughtRollout) -> dict[str, object]:
        rollout, parsed, match, target = learned.rollout, learned.parsed, learned.match, learned.sample.target
        limit = self._section.max_text_chars
        text, taught = (
            self._vocabulary.decode_pieces(ids).decode("utf-8", "replace")[:limit]
            for ids in (rollout.token_ids, target.token_ids[target.num_prompt_tokens :])
        )
        return {
            "step": step,
            "record_id": target.record_id,
            "policy_version": str(rollout.policy_version),
            "finish_reason": rollout.finish_reason,
            "answer": text,
            "target": taught,
            "pairs": match.pairs,
            "missing": match.missing,
            "extra": match.extra,
            "dropped": parsed.dropped,
            "notices": parsed.notices,
        }


def _dumped_steps(folder: Path) -> set[int]:
    """The steps in the names of the dumps that lie there, counted from 1."""
    return {int(path.name.split("-")[1]) for path in folder.glob("step-*.json")}
