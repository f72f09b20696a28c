"""The validation records, answered greedily by the weights of a step."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from math import exp
from typing import Any

from rich.console import Console

from learner.data.encoding import Encoder
from learner.decoding.opening import Decoding
from learner.decoding.requests import decode_answers, decode_requests
from learner.detection.parsing import ParsedRollout, parse_rollout
from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.detection.record_rules import KINDS
from learner.detection.vocabulary import CoordinateVocabulary
from learner.reporting.sinks import progress_bar
from learner.types import LostRecord, LostSample, Rollout
from shared.errors import ProtocolError
from shared.wire import PolicyVersion


@dataclass(frozen=True)
class ScoredAnswer:
    """A parsed answer, and how sure the model was of each of its predictions, 0..1.

    `stop_margins` are those of the wire, where they were asked for. A record that no server answered `is_lost`; its
    answer says nothing.
    """

    record: Record
    parsed: ParsedRollout
    scores: tuple[float, ...]
    stop_margins: tuple[tuple[int, float], ...] = ()
    is_lost: bool = False


@dataclass(frozen=True)
class Validation:
    """What validation decodes, and with what."""

    records: tuple[Record, ...]
    encoder: Encoder
    vocabulary: CoordinateVocabulary
    decoding: Decoding
    console: Console

    async def answers(self, step: int, **sampling: Any) -> AsyncGenerator[ScoredAnswer, None]:
        """Every record's answer after `step` optimizer steps, in the order in which they finish.

        Greedy, whatever training samples with; `sampling` are further changes to the fields of `Sampling`.
        """
        lost: list[Record] = []

        def lose(each: LostSample | LostRecord) -> None:
            message = f"evaluation: {each.record.record_id} lost: {each.message}"
            self.console.print(message, style="yellow", markup=False)
            lost.append(each.record)

        async def publish() -> PolicyVersion:
            return (await self.decoding.decoder.publish(step)).version

        encoded = self.encoder.encode_in_order(self.records)
        requests = decode_requests(encoded, run_seed=0, step=0, lose=lose)
        how = self.decoding.sampling.model_copy(update={"temperature": 0.0, **sampling})
        answers = decode_answers(self.decoding.pool, requests, publish, how, return_logprobs=True)
        with progress_bar(self.console) as bar:
            task = bar.add_task("evaluating", total=len(self.records))
            async with aclosing(answers):
                async for answer in answers:
                    bar.advance(task)
                    if isinstance(answer, LostSample):
                        lose(answer)
                    else:
                        yield self._scored(answer)
            for record in lost:
                yield ScoredAnswer(record, ParsedRollout(malformed=True), (), is_lost=True)

    def _scored(self, rollout: Rollout) -> ScoredAnswer:
        parsed = parse_rollout(rollout.token_ids, self.vocabulary, rollout.finish_reason, kinds=KINDS)
        scores = tuple(score_of(prediction, rollout) for prediction in parsed.predictions)
        return ScoredAnswer(rollout.request.encoded.record, parsed, scores, rollout.stop_margins)


def score_of(prediction: Prediction, rollout: Rollout) -> float:
    """How sure the model was of an object: the mean probability of its coordinate tokens.

    Raises ProtocolError for an answer without log-probabilities.
    """
    logprobs = rollout.token_logprobs
    if logprobs is None:
        raise ProtocolError(f"{rollout.request.uid}: the server was asked for log-probabilities and sent none")
    return sum(exp(logprobs[position]) for position in prediction.positions) / len(prediction.positions)
