"""What the client of rollout servers is asked with."""

from pathlib import Path

import pytest

from learner.data.encoding import Encoder
from learner.model.load import load_tokenizer
from shared.wire import Sampling


@pytest.fixture(scope="session")
def sampling(checkpoint: Path, encoder: Encoder) -> Sampling:
    """Up to six tokens, and none of the prompt's placeholders."""
    tokenizer = load_tokenizer(str(checkpoint))
    placeholders = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    return Sampling(max_new_tokens=6, stop_token_ids=(7,), banned_token_ids=tuple(placeholders))
