"""From records to what is asked of the rollout servers."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from hashlib import blake2b

from learner.types import EncodedRecord, RolloutRequest


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
