from pathlib import Path

from shared.config.describe import configuration_page
from shared.config.keys import known_keys

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text() == configuration_page(), "run: python -m shared.config.describe > docs/configuration.md"


def test_every_key_has_a_meaning() -> None:
    assert [key.path for key in known_keys() if not key.field.description] == []
