"""How the checkpoints of a training are to be asked, by its configuration."""

from learner.data.prompt import prompt_of
from learner.detection.vocabulary import CoordinateVocabulary
from shared.checkpoint_usage import CheckpointUsage
from shared.config.models import Config
from shared.errors import ConfigError


def usage_of(config: Config, vocabulary: CoordinateVocabulary) -> CheckpointUsage:
    """What `boxloop.json` says of a checkpoint that a run of this configuration writes."""
    prompt, rollout, template = prompt_of(config), config.rollout, config.template
    return CheckpointUsage(
        system=prompt.system,
        user_prompt=prompt.user,
        object_ordering=config.custom.object_ordering,
        min_pixels=template.min_pixels,
        max_pixels=template.max_pixels,
        stop_tokens=stop_tokens_of(vocabulary),
        max_model_len=config.max_model_len,
        max_new_tokens=rollout.max_new_tokens,
        repetition_penalty=rollout.repetition_penalty,
        repeat_terminate=rollout.repeat_terminate.rule,
    )


def check_usage(usage: CheckpointUsage, vocabulary: CoordinateVocabulary, where: object) -> None:
    """Raise ConfigError when the tokenizer beside the file ends answers otherwise than the one of the training."""
    found = stop_tokens_of(vocabulary)
    if found != usage.stop_tokens:
        raise ConfigError(
            f"{where}: answers end with {', '.join(usage.stop_tokens)}, but the tokenizer beside it has "
            f"{', '.join(found)}; give the checkpoint the tokenizer that it was trained with"
        )


def stop_tokens_of(vocabulary: CoordinateVocabulary) -> tuple[str, ...]:
    """The texts of the tokens that end an answer, sorted."""
    return tuple(sorted(vocabulary.tokenizer.id_to_token(token_id) for token_id in vocabulary.stop_ids))
