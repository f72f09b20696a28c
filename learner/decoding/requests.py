"""From records to answers: what is asked of the rollout servers, and in which order."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from hashlib import blake2b

from learner.decoding.pool import RolloutPool
from learner.types import Answer, EncodedRecord, LostRecord, RolloutRequest
from shared.streams import prefetched
from shared.wire import PolicyVersion, Sampling


async def decode_answers(
    pool: RolloutPool,
    requests: AsyncGenerator[RolloutRequest, None],
    version: Callable[[], Awaitable[PolicyVersion | None]],
    sampling: Sampling | None = None,
    *,
    return_logprobs: bool = False,
) -> AsyncGenerator[Answer, None]:
    """Every request's result, in the order in which they finish.

    Requests are made while others are decoded, and no more than that are held; the first while `version` is awaited,
    which publishes the weights to decode with.
    """
    async with (
        prefetched(requests, depth=1) as read,
        aclosing(pool.decode(read, await version(), sampling, return_logprobs=return_logprobs)) as results,
    ):
        async for result in results:
            yield result


async def decode_requests(
    encoded: AsyncGenerator[EncodedRecord | LostRecord, None],
    run_seed: int,
    step: int,
    lose: Callable[[LostRecord], None],
    num_samples: int | None = None,
) -> AsyncGenerator[RolloutRequest, None]:
    """One request a record, or `num_samples` of it; what cannot be asked for is given to `lose`.

    At the border of two epochs a record can stand in a step twice: each is told apart.
    """
    asked: Counter[str] = Counter()
    async with aclosing(encoded):
        async for each in encoded:
            if isinstance(each, LostRecord):
                lose(each)
                continue
            record_id = each.record.record_id
            repeat = asked[record_id]
            asked[record_id] += 1
            if num_samples is None:
                yield RolloutRequest(each, sampling_seed(run_seed, step, record_id), repeat)
                continue
            for sample in range(num_samples):
                seed = sampling_seed(run_seed, step, record_id, repeat * num_samples + sample)
                yield RolloutRequest(each, seed, repeat, sample)


def sampling_seed(run_seed: int, step: int, record_id: str, sample: int | None = None) -> int:
    """Seed of one answer, independent of batching, replica and order."""
    name = f"{run_seed}/{step}/{record_id}" if sample is None else f"{run_seed}/{step}/{record_id}#{sample}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 1
