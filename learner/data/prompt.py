"""The chat that asks for an answer, and its built-in words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from shared.config.models import Config
from shared.errors import DataError

SYSTEM_PROMPT = "You detect objects."
USER_PROMPTS: Mapping[str, str] = {
    "sorted": "Detect all objects in JSON, from top to bottom: desc, and bbox_2d as coordinate tokens from 0 to 999.",
    "random": "Detect all objects in JSON, in any order: desc, and bbox_2d as coordinate tokens from 0 to 999.",
}
"""What the model is asked when a configuration does not say, by `custom.object_ordering`.

Coordinate tokens are named by their form only: a repetition penalty counts the prompt's tokens too and must not fall
on real coordinates.
"""


class Prompt(NamedTuple):
    """The two texts of a chat. An empty `system` leaves the system turn out."""

    system: str
    user: str


def prompt_of(config: Config) -> Prompt:
    """What a configuration asks with, the built-in texts where it does not say."""
    system, user, custom = config.template.system, config.custom.user_prompt, config.custom
    return Prompt(
        system=SYSTEM_PROMPT if system is None else system,
        user=USER_PROMPTS[custom.object_ordering] if user is None else user,
    )


def chat_text(tokenizer: Any, system: str, user_prompt: str) -> str:
    """The chat as text, up to where the answer begins: system turn, then one user turn, image first."""
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; add the model's chat_template.jinja to the checkpoint")
    turns: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    turns.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user_prompt}]})
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text
