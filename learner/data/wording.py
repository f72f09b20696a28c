"""The built-in prompt: what the model is asked when a configuration does not say.

Coordinate tokens are named by their form only: a repetition penalty counts the prompt's tokens too and must not fall
on real coordinates.
"""

SYSTEM_PROMPT = "You detect objects."
USER_PROMPT = "Detect all objects in JSON, from top to bottom: desc, and bbox_2d as coordinate tokens from 0 to 999."
