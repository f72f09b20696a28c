"""Pictures in, predictions out: every picture is asked for, drawn and written as it comes; nothing of it is kept."""

import io
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import anyio
from anyio import to_thread
from rich.console import Console

from learner.detection.record import Record
from learner.evaluation.answers import ScoredAnswer
from learner.evaluation.coco_ap import ScoredImage
from learner.evaluation.coco_results import ResultFiles, own_image_id
from learner.prediction.opening import Predictor
from learner.prediction.source import Source
from learner.prediction.tally import Tally
from learner.reporting.detections import draw_detections
from learner.reporting.sinks import progress_bar
from shared.errors import DataError
from shared.streams import task_group
from shared.whole_file import write_whole

PICTURES = "pictures"
DRAWN_AT_ONCE = 4
"""Pictures that are drawn side by side, each in a thread; while there are so many, no further answer is taken."""
TELL_EVERY_S = 10.0
JPEG_QUALITY = 92
LONGEST_STEM = 100
"""Bytes of a picture's name."""


class Prediction:
    """One run over the pictures of a source, into the folder `out`.

    `classes` are the only names that are kept, in the order of their category ids; none = all.
    """

    def __init__(
        self, predictor: Predictor, source: Source, out: Path, classes: Sequence[str], console: Console
    ) -> None:
        self.tally = Tally(classes)
        self._predictor = predictor
        self._source = source
        self._out = out
        self._classes = frozenset(classes)
        self._console = console
        self._bar = progress_bar(console)
        self._room = anyio.Semaphore(DRAWN_AT_ONCE)
        self._files: ResultFiles
        self._told_at = time.monotonic()

    async def run(self) -> None:
        """Go through all pictures. Raises DataError when there is none."""
        total = await to_thread.run_sync(self._source.count)
        if not total:
            raise DataError(f"{self._source.root} holds no picture; name a picture, a folder of them or a JSONL file")
        (self._out / PICTURES).mkdir(parents=True, exist_ok=True)
        self._task = self._bar.add_task("predicting", total=total)
        predictor = self._predictor
        decision = predictor.point.decision(predictor.asking.vocabulary)
        records = self._source.records(self._fail)
        answers = predictor.asking.answers(records, predictor.publish, stop_decision=decision)
        with ResultFiles(self._out, self._source.root, self.tally.classes) as self._files, self._bar:
            async with task_group() as tasks, aclosing(answers):
                async for answer in answers:
                    await self._room.acquire()
                    tasks.start_soon(self._take, answer)

    async def _take(self, answer: ScoredAnswer) -> None:
        """Draw an answer and write it down."""
        try:
            if answer.lost:
                self._fail(failure_line(answer))
                return
            image = self._kept_of(answer)
            image_id = own_image_id(answer.record)
            assert image_id is not None, "sources number their pictures"
            name = f"{PICTURES}/{picture_name(answer.record, image_id)}"
            try:
                await to_thread.run_sync(_draw, image, self._out / name)
            except DataError as error:
                self._fail(str(error).removeprefix(f"{answer.record.record_id}: "))
                return
            self._files.add(image, image_id, picture=name)
            self.tally.add(image)
            self._advance()
        finally:
            self._room.release()

    def _kept_of(self, answer: ScoredAnswer) -> ScoredImage:
        """The predictions that the operating point and the wanted names leave."""
        parsed, scores = self._predictor.point.filter(answer.parsed, answer.scores)
        kept = [
            (prediction, score)
            for prediction, score in zip(parsed.predictions, scores, strict=True)
            if not self._classes or prediction.desc in self._classes
        ]
        return ScoredImage(answer.record, tuple(each for each, _ in kept), tuple(score for _, score in kept))

    def _fail(self, line: str) -> None:
        self.tally.num_failed += 1
        self._console.print(line, style="yellow", markup=False, soft_wrap=True)
        self._advance()

    def _advance(self) -> None:
        """Show how far it is: a bar on a terminal, elsewhere a line now and then."""
        self._bar.advance(self._task)
        now = time.monotonic()
        if not self._console.is_terminal and now > self._told_at + TELL_EVERY_S:
            self._told_at = now
            self._console.print(f"{self._bar.tasks[0].completed:.0f} of {self._bar.tasks[0].total:.0f} pictures")


def _draw(image: ScoredImage, file: Path) -> None:
    data = io.BytesIO()
    draw_detections(image.record, image.predictions, image.scores).save(
        data, "JPEG", quality=JPEG_QUALITY, subsampling=0
    )
    write_whole(file, data.getvalue())


def picture_name(record: Record, image_id: int) -> str:
    """The name of a record's picture: 000017-street.jpg."""
    stem = Path(record.images[0]).stem.encode("utf-8", "replace")[:LONGEST_STEM].decode("utf-8", "ignore")
    return f"{image_id:06d}-{stem}.jpg"


def failure_line(answer: ScoredAnswer) -> str:
    """Which picture was not answered, and why, in one line."""
    path = answer.record.images[0]
    why = " ".join(answer.lost.removeprefix(f"{answer.record.record_id}: ").split())
    return why if path in why else f"{path}: {why}"
