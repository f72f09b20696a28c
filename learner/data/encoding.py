"""From a record to the ids of its prompt: the learner owns the token space (docs/data.md)."""

import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import anyio
from anyio import CapacityLimiter, to_thread

from learner.data.images import ImageReader
from learner.data.prompt import SYSTEM_PROMPT, USER_PROMPTS, chat_text
from learner.detection.record import Record
from learner.detection.record_rules import CLASSES, NO_CLASSES
from learner.types import EncodedRecord, Grid, LostRecord
from shared.errors import DataError
from shared.streams import task_group

MOST_ENCODED = 32
"""Encoded records that wait for their turn: enough for every worker, few enough to hold their images."""
MOST_TEXTS = 1024
"""Different texts of prompts whose ids are remembered."""


@dataclass
class _Encoding:
    """A record that is being encoded, and the result once that is `done`."""

    record: Record
    done: anyio.Event = field(default_factory=anyio.Event)
    result: EncodedRecord | LostRecord | None = None


class Encoder:
    """Encodes records: reads the image, and puts as many placeholders into the prompt as it has tokens.

    Records that ask alike have one prompt, which is tokenised once. Up to `num_workers` records are encoded at a time,
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

        {classes} in `user_prompt` is what a record's classes fill.
        `on_bad_record` is what becomes of a record whose image cannot be used.

        Raises DataError when the tokenizer has no chat template or renders the image as another number of
        placeholders than one.
        """
        self._images = images
        self._on_bad_record = on_bad_record
        self._limiter = CapacityLimiter(max(1, num_workers))
        self._tokenizer = tokenizer
        self._tokenizing = threading.Lock()
        self._system = SYSTEM_PROMPT if system is None else system
        self._user_prompt = USER_PROMPTS["sorted"] if user_prompt is None else user_prompt
        self._placeholder: int = tokenizer.convert_tokens_to_ids(images.placeholder)
        self._ids_of = lru_cache(MOST_TEXTS)(self._tokenized)
        self.request_token_ids = self._ids_of(self._user_prompt)

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
        token_ids = self._ids_of(self.user_text(record))
        image = self._images.read(record)
        return EncodedRecord(record, token_ids, self._expanded(token_ids, image.grid), image)

    def user_text(self, record: Record) -> str:
        """What the user turn of a record says behind the image. Raises DataError for classes that it lacks."""
        if record.prompt is not None:
            return record.prompt
        if CLASSES in self._user_prompt and not record.classes:
            raise DataError(f"{record.record_id}: {NO_CLASSES}")
        return self._user_prompt.replace(CLASSES, ", ".join(record.classes))

    def num_prompt_tokens(self, width: int, height: int, user_text: str | None = None) -> int:
        """Length of the expanded prompt for an image of this size in px, which is not read; None = as configured."""
        token_ids = self.request_token_ids if user_text is None else self._ids_of(user_text)
        return len(token_ids) - 1 + self._images.num_tokens(self._images.grid_of(width, height))

    def _tokenized(self, user_text: str) -> tuple[int, ...]:
        """The ids of a chat with one placeholder for the image. Called by many threads, of which one tokenises."""
        with self._tokenizing:
            text = chat_text(self._tokenizer, self._system, user_text)
            token_ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if token_ids.count(self._placeholder) != 1:
            raise DataError(
                f"the prompt must hold {self._images.placeholder} once, but the chat template renders it as {text!r}; "
                "use a checkpoint with its family's own template, and leave placeholders out of the prompt's texts"
            )
        return token_ids

    def _expanded(self, token_ids: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
        """The prompt with one placeholder a merged patch."""
        place = token_ids.index(self._placeholder)
        placeholders = (self._placeholder,) * self._images.num_tokens(grid)
        return token_ids[:place] + placeholders + token_ids[place + 1 :]
