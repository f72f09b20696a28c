"""Records, answered greedily by the weights of a step or of a checkpoint."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from math import exp
from typing import Any

from rich.console import Console

from learner.data.encoding import Encoder
from learner.decoding.ahead import Decoder
from learner.decoding.pool import RolloutPool
from learner.decoding.requests import decode_answers, decode_requests
from learner.detection.parsing import ParsedRollout, parse_rollout
from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.detection.record_rules import KINDS
from learner.detection.vocabulary import CoordinateVocabulary
from learner.reporting.sinks import progress_bar
from learner.types import LostRecord, LostSample, Rollout
from shared.errors import ProtocolError
from shared.wire import PolicyVersion, Sampling


@dataclass(frozen=True)
class ScoredAnswer:
    """A parsed answer, and how sure the model was of each of its predictions, 0..1.

    `stop_margins` are those of the wire, where they were asked for. Of a record that was not answered `lost` says why;
    its answer says nothing.
    """

    record: Record
    parsed: ParsedRollout
    scores: tuple[float, ...]
    stop_margins: tuple[tuple[int, float], ...] = ()
    lost: str = ""


Publish = Callable[[], Awaitable[PolicyVersion | None]]
"""Brings the weights to the servers that answers are wanted of; None = whatever they hold."""


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how."""

    encoder: Encoder
    vocabulary: CoordinateVocabulary
    pool: RolloutPool
    sampling: Sampling

    async def answers(
        self, records: Iterable[Record], publish: Publish, **sampling: Any
    ) -> AsyncGenerator[ScoredAnswer, None]:
        """Every record's answer, in the order in which they finish; records are read as there is room for them.

        Greedy, whatever training samples with; `sampling` are further changes to the fields of `Sampling`.
        """
        unread: list[LostRecord] = []
        encoded = self.encoder.encode_in_order(records)
        requests = decode_requests(encoded, run_seed=0, step=0, lose=unread.append)
        how = self.sampling.model_copy(update={"temperature": 0.0, **sampling})
        answers = decode_answers(self.pool, requests, publish, how, return_logprobs=True)
        async with aclosing(answers):
            async for answer in answers:
                yield lost_answer(answer) if isinstance(answer, LostSample) else self._scored(answer)
                while unread:
                    yield lost_answer(unread.pop(0))
        for each in unread:
            yield lost_answer(each)

    def _scored(self, rollout: Rollout) -> ScoredAnswer:
        parsed = parse_rollout(rollout.token_ids, self.vocabulary, rollout.finish_reason, kinds=KINDS)
        scores = tuple(score_of(prediction, rollout) for prediction in parsed.predictions)
        return ScoredAnswer(rollout.request.encoded.record, parsed, scores, rollout.stop_margins)


@dataclass(frozen=True)
class Validation:
    """What validation decodes, and with what."""

    records: tuple[Record, ...]
    asking: Asking
    decoder: Decoder
    console: Console

    async def answers(self, step: int, **sampling: Any) -> AsyncGenerator[ScoredAnswer, None]:
        """Every record's answer after `step` optimizer steps; says which records were lost."""

        async def publish() -> PolicyVersion:
            return (await self.decoder.publish(step)).version

        with progress_bar(self.console) as bar:
            task = bar.add_task("evaluating", total=len(self.records))
            async with aclosing(self.asking.answers(self.records, publish, **sampling)) as answers:
                async for answer in answers:
                    bar.advance(task)
                    if answer.lost:
                        message = f"evaluation: {answer.record.record_id} lost: {answer.lost}"
                        self.console.print(message, style="yellow", markup=False)
                    yield answer


def lost_answer(lost: LostSample | LostRecord) -> ScoredAnswer:
    """What stands for a record that was not answered."""
    return ScoredAnswer(lost.record, ParsedRollout(malformed=True), (), lost=lost.message)


def score_of(prediction: Prediction, rollout: Rollout) -> float:
    """How sure the model was of an object: the mean probability of its coordinate tokens.

    Raises ProtocolError for an answer without log-probabilities.
    """
    logprobs = rollout.token_logprobs
    if logprobs is None:
        raise ProtocolError(f"{rollout.request.uid}: the server was asked for log-probabilities and sent none")
    return sum(exp(logprobs[position]) for position in prediction.positions) / len(prediction.positions)
