"""The tokenizer of the tiny model: a byte-level BPE trained in place on answers about shapes.

An answer is mostly JSON glue. The pre-tokenizer keeps each stretch of glue in one word, so training merges it into one
token: 15 tokens an object ("plain") or 14 ("fused"), where Qwen's own pre-tokenizer needs about twice as many. "plain"
splits at the borders of objects. "fused" does as real tokenizers do and merges over them, so that one token ends an
object and says whether another follows: `"]}, "` or `"]}}`.
"""

import random
from collections.abc import Iterator
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from learner.data.prompt import SYSTEM_PROMPT, USER_PROMPTS
from learner.data.shapes import COLOURS, FORMS
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import NUM_BINS, coordinate_text

Glue = Literal["plain", "fused"]

_GLUE: dict[Glue, tuple[str, ...]] = {
    "plain": ('{"object_', ', "object_', '": {"desc": "', '", "bbox_2d": ["', '", "', '"]', "{", "}"),
    "fused": ('{"', "object_", '": {"desc": "', '", "bbox_2d": ["', '"]}, "', '"]}}', '", "', "{}"),
}
"""Stretches that stay in one word, longer ones before those that begin like them."""

_WORDS = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
"""Digits one by one, words and punctuation with the space before them."""

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(glue: Glue) -> PreTrainedTokenizerFast:
    """Train the tokenizer: bytes, merges, then the special tokens, then the 1000 coordinate tokens in bin order."""
    backend = Tokenizer(models.BPE())
    pattern = "|".join([*map(_escaped, _GLUE[glue]), _WORDS])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL_TOKENS])
    coordinates = [AddedToken(coordinate_text(bin), special=True, normalized=False) for bin in range(NUM_BINS)]
    backend.add_special_tokens(coordinates)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    """Answers as Stage 1 teaches them, stretch by stretch between coordinate tokens, and the prompt around them."""
    chooser = random.Random(0)
    descs = [f"{colour} {form}" for colour in COLOURS for form in FORMS]
    for num_objects in [*range(16), *range(1, 7)] * 8:
        objects = [GroundTruthObject(chooser.choice(descs), "bbox_2d", (0, 0, 0, 0)) for _ in range(num_objects)]
        yield from answer_text(objects).split(coordinate_text(0))
    for role, text in [("system", SYSTEM_PROMPT), ("user", USER_PROMPTS["sorted"]), ("assistant", "")] * 2:
        yield f"{role}\n{text}"


def _escaped(text: str) -> str:
    """`text` as a regular expression of the tokenizers library."""
    return "".join(f"\\{character}" if character in "[]{}.|+*?()^$\\" else character for character in text)
