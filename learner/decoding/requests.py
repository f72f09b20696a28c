"""From records to what is asked of the rollout servers."""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from hashlib import blake2b

import anyio

from learner.data.prompt import Encoder
from learner.data.sample import EncodedRecord
from learner.detection.record import Record
from learner.servers.rollouts import RolloutRequest
from shared.streams import task_group

MOST_ENCODED = 32
"""Encoded records that wait for their turn: enough for every worker, few enough to hold their images."""


async def encode_in_order(records: Sequence[Record], encoder: Encoder) -> AsyncGenerator[EncodedRecord, None]:
    """Encode records side by side; each is handed on in its turn as soon as it is done, however slow the taker is."""

    encoded: dict[int, EncodedRecord] = {}
    done = [anyio.Event() for _ in records]

    async def encode(place: int) -> None:
        encoded[place] = await encoder.encode(records[place])
        done[place].set()

    async with task_group() as tasks:
        for place in range(min(MOST_ENCODED, len(records))):
            tasks.start_soon(encode, place)
        for place in range(len(records)):
            await done[place].wait()
            yield encoded.pop(place)
            if place + MOST_ENCODED < len(records):
                tasks.start_soon(encode, place + MOST_ENCODED)


async def decode_requests(
    encoded: AsyncGenerator[EncodedRecord, None], run_seed: int, step: int
) -> AsyncGenerator[RolloutRequest, None]:
    """One request a record. At the border of two epochs a record can stand in a step twice: each is told apart."""
    asked: Counter[str] = Counter()
    async with aclosing(encoded):
        async for each in encoded:
            record_id = each.record.record_id
            yield RolloutRequest(each, sampling_seed(run_seed, step, record_id), repeat=asked[record_id])
            asked[record_id] += 1


def sampling_seed(run_seed: int, step: int, record_id: str) -> int:
    """Seed of one answer, independent of batching, replica and order."""
    digest = blake2b(f"{run_seed}/{step}/{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
