"""From a record to the ids of its prompt: the learner owns the token space (docs/data.md)."""

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import anyio
from anyio import CapacityLimiter, to_thread

from learner.data.images import ImageReader
from learner.data.prompt import SYSTEM_PROMPT, USER_PROMPTS, chat_text
from learner.detection.record import Record
from learner.types import EncodedRecord, Grid, LostRecord
from shared.errors import DataError
from shared.streams import task_group

MOST_ENCODED = 32
"""Encoded records that wait for their turn: enough for every worker, few enough to hold their images."""


@dataclass
class _Encoding:
    """A record that is being encoded, and the result once that is `done`."""

    record: Record
    done: anyio.Event = field(default_factory=anyio.Event)
    result: EncodedRecord | LostRecord | None = None


class Encoder:
    """Encodes records: reads the image, and puts as many placeholders into the prompt as it has tokens.

    The prompt is the same for every record, so it is tokenised once. Up to `num_workers` records are encoded at a time,
    each in a worker thread.
    """

    def __init__(
        self,
        tokenizer: Any,
        images: ImageReader,
        *,
        system: str | None = None,
        user_prompt: str | None = None,
        num_workers: int = 1,
        on_bad_record: Literal["error", "skip"] = "error",
    ) -> None:
        """`system` and `user_prompt` replace the built-in texts; an empty `system` leaves the system turn out.

        `on_bad_record` is what becomes of a record whose image cannot be used.

        Raises DataError when the tokenizer has no chat template or renders the image as another number of
        placeholders than one.
        """
        self._images = images
        self._on_bad_record = on_bad_record
        self._limiter = CapacityLimiter(max(1, num_workers))
        text = chat_text(
            tokenizer,
            SYSTEM_PROMPT if system is None else system,
            USER_PROMPTS["sorted"] if user_prompt is None else user_prompt,
        )
        self.request_token_ids: tuple[int, ...] = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        self._placeholder: int = tokenizer.convert_tokens_to_ids(images.placeholder)
        if self.request_token_ids.count(self._placeholder) != 1:
            raise DataError(
                f"the prompt must hold {images.placeholder} once, but the chat template renders it as {text!r}; "
                "use a checkpoint with its family's own template, and leave placeholders out of the prompt's texts"
            )

    async def encode(self, record: Record) -> EncodedRecord | LostRecord:
        """Encode a record in a worker thread. One that cannot be is lost, or raises DataError, as was asked for.

        Whoever takes it tells what was lost.
        """
        try:
            return await to_thread.run_sync(self.encode_now, record, limiter=self._limiter)
        except DataError as error:
            if self._on_bad_record == "error":
                raise
            return LostRecord(record, str(error))

    async def encode_in_order(self, records: Iterable[Record]) -> AsyncGenerator[EncodedRecord | LostRecord, None]:
        """Encode records side by side; each is handed on in its turn once it is done, however slow the taker is.

        Of `records` no more are taken ahead than MOST_ENCODED.
        """
        coming, under_way = iter(records), deque[_Encoding]()
        async with task_group() as tasks:

            def start(records: Iterable[Record]) -> None:
                for record in records:
                    under_way.append(_Encoding(record))
                    tasks.start_soon(self._finish, under_way[-1])

            start(islice(coming, MOST_ENCODED))
            while under_way:
                encoding = under_way.popleft()
                await encoding.done.wait()
                assert encoding.result is not None
                yield encoding.result
                start(islice(coming, 1))

    async def _finish(self, encoding: "_Encoding") -> None:
        encoding.result = await self.encode(encoding.record)
        encoding.done.set()

    def encode_now(self, record: Record) -> EncodedRecord:
        """Encode a record in this thread. Raises DataError when its line or its image cannot be used."""
        if record.fault:
            raise DataError(record.fault)
        image = self._images.read(record)
        return EncodedRecord(record, self.request_token_ids, self._expanded(image.grid), image)

    def num_prompt_tokens(self, width: int, height: int) -> int:
        """Length of the expanded prompt for an image of this size in px, which is not read."""
        grid = self._images.grid_of(width, height)
        return len(self.request_token_ids) - 1 + self._images.num_tokens(grid)

    def _expanded(self, grid: Grid) -> tuple[int, ...]:
        """The prompt with one placeholder a merged patch."""
        place = self.request_token_ids.index(self._placeholder)
        placeholders = (self._placeholder,) * self._images.num_tokens(grid)
        return self.request_token_ids[:place] + placeholders + self.request_token_ids[place + 1 :]
