"""What predicts: servers that hold a checkpoint, what is asked of them, and the point that they are read at."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass

from rich.console import Console

from learner.checkpoints.operating_point import told_point
from learner.checkpoints.start import Start, start_of
from learner.checkpoints.usage import check_usage
from learner.data.opening import check_embeddings, open_encoder
from learner.decoding.opening import MetServers, open_servers, pool_of, publisher_of, sampling_of
from learner.detection.operating_point import PLAIN, OperatingPoint
from learner.detection.vocabulary import CoordinateVocabulary
from learner.evaluation.answers import Asking, Publish
from learner.families.load import load_model, load_tokenizer
from learner.model.adapter_files import tuner_of
from learner.training.lane import ComputeLane
from learner.weight_sync.publisher import WeightPublisher
from shared.checkpoint_facts import USAGE_FILE, checkpoint_folder
from shared.checkpoint_usage import read_usage
from shared.config.models import Config
from shared.families.table import facts_in
from shared.wire import PolicyVersion


@dataclass(frozen=True)
class Predictor:
    """Who is asked, how the weights get there, and at which operating point answers are read."""

    asking: Asking
    publish: Publish
    point: OperatingPoint


@asynccontextmanager
async def open_predictor(config: Config, console: Console, *, is_plain: bool) -> AsyncIterator[Predictor]:
    """Meet the servers of `config`, which serve `model.model`; adapters are merged here and sent to them.

    Raises DataError and ConfigError for a checkpoint that cannot be used, and as `open_servers`.
    """
    start = start_of(config.model.model, config.tuner, config.training)
    folder = checkpoint_folder(start.model)
    own = start.checkpoint or folder
    tokenizer = load_tokenizer(start.model)
    vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
    check_embeddings(vocabulary, folder)
    if (usage := read_usage(own)) is not None:
        check_usage(usage, vocabulary, own / USAGE_FILE)
    point = PLAIN if is_plain else told_point(own, console)
    encoder = open_encoder(config, folder, tokenizer)
    sampling = sampling_of(config.rollout, vocabulary, facts_in(folder))
    async with open_servers(config.rollout.vllm.server, folder) as met:
        with _publisher(config, start, met) as weights:

            async def publish() -> PolicyVersion | None:
                return (await weights.publish_if_stale(0)).version if weights is not None else None

            pool = pool_of(config, met.servers, sampling, met.infos, weights.resend if weights is not None else None)
            yield Predictor(Asking(encoder, vocabulary, pool, sampling), publish, point)


@contextmanager
def _publisher(config: Config, start: Start, met: MetServers) -> Iterator[WeightPublisher | None]:
    """What brings adapters to servers, which hold their base; None where they hold the whole checkpoint."""
    if start.adapters is None:
        yield None
        return
    tuner = tuner_of(start.adapters)
    # In float32, as an export merges them: the servers round once, to the type that they hold.
    loaded = load_model(start.model, dtype="float32", device="cpu", tuner=tuner, adapters=start.adapters)
    with ComputeLane() as lane, closing(publisher_of(config, met.channels, loaded, lane)) as weights:
        yield weights
