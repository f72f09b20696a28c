"""What is taught: from an encoded record, or from a rollout of it, to a training sample. Pure and fast."""

from dataclasses import dataclass

from learner.detection.matching import MatchingConfig, match_objects
from learner.detection.parsing import parse_rollout
from learner.detection.targets import TargetWeights, ground_truth_target, rollout_target
from learner.detection.vocabulary import CoordinateVocabulary
from learner.types import EncodedRecord, Rollout, TaughtRollout, TrainingSample


@dataclass(frozen=True)
class Teacher:
    """Makes targets. `capacity` is the longest target in tokens, `weights` say what is supervised how much."""

    vocabulary: CoordinateVocabulary
    matching: MatchingConfig
    weights: TargetWeights
    capacity: int

    def ground_truth(self, encoded: EncodedRecord) -> TrainingSample:
        """The record's own answer, teacher-forced from its first token."""
        target = ground_truth_target(
            encoded.record.record_id, encoded.prompt_token_ids, encoded.record.objects, self.vocabulary, self.weights
        )
        return TrainingSample(target, encoded.image)

    def rollout(self, rollout: Rollout) -> TaughtRollout:
        """The model's own answer, parsed and matched, with every object it missed appended."""
        encoded = rollout.request.encoded
        objects = encoded.record.objects
        parsed = parse_rollout(rollout.token_ids, self.vocabulary, rollout.finish_reason)
        match = match_objects(parsed.predictions, objects, self.matching)
        target = rollout_target(
            encoded.record.record_id,
            encoded.prompt_token_ids,
            objects,
            parsed,
            match,
            self.vocabulary,
            capacity=self.capacity,
            weights=self.weights,
        )
        return TaughtRollout(rollout, parsed, match, TrainingSample(target, encoded.image))
