"""What is taught: from an encoded record, or from a rollout of it, to a training sample. Pure and fast."""

from dataclasses import dataclass

from learner.detection.matching import MatchingConfig, match_objects
from learner.detection.parsing import parse_rollout
from learner.detection.record import Record
from learner.detection.target_writer import answer_weight
from learner.detection.targets import TargetWeights, ground_truth_target, rollout_target
from learner.detection.vocabulary import CoordinateVocabulary
from learner.types import EncodedRecord, Rollout, TaughtRollout, TrainingSample
from shared.config.models import Config
from shared.config.section import pick


@dataclass(frozen=True)
class TargetMaker:
    """Makes targets. `capacity` is the longest target in tokens, `weights` say what is supervised how much."""

    vocabulary: CoordinateVocabulary
    matching: MatchingConfig
    weights: TargetWeights
    capacity: int

    @classmethod
    def of(cls, config: Config, vocabulary: CoordinateVocabulary) -> "TargetMaker":
        """What a configuration says of targets. Only Stage 1 has cross-entropy on coordinates."""
        weights = pick(TargetWeights, config.stage2, coord_ce_weight=1.0 if config.is_stage_1 else 0.0)
        return cls(vocabulary, pick(MatchingConfig, config.rollout), weights, config.global_max_length)

    def answer_weight(self, record: Record) -> float:
        """Σ of the cross-entropy weights over the record's own answer: W_s of docs/numerics.md."""
        weights = self.weights
        return answer_weight(self.vocabulary, record.objects, weights.desc_ce_weight, weights.coord_ce_weight)

    def of_record(self, encoded: EncodedRecord) -> TrainingSample:
        """The record's own answer, teacher-forced from its first token."""
        record = encoded.record
        target = ground_truth_target(
            record.record_id, encoded.prompt_token_ids, record.objects, self.vocabulary, self.weights
        )
        return TrainingSample(target, encoded.image)

    def of_rollout(self, rollout: Rollout) -> TaughtRollout:
        """The model's own answer, parsed and matched, with every object it missed appended."""
        encoded = rollout.request.encoded
        record = encoded.record
        parsed = parse_rollout(rollout.token_ids, self.vocabulary, rollout.finish_reason)
        match = match_objects(parsed.predictions, record.objects, self.matching)
        target = rollout_target(
            record.record_id,
            encoded.prompt_token_ids,
            record.objects,
            parsed,
            match,
            self.vocabulary,
            capacity=self.capacity,
            weights=self.weights,
        )
        return TaughtRollout(rollout, parsed, match, TrainingSample(target, encoded.image))
