"""Where servers without a learner of their own listen, left in the output directory for whoever wants them.

The file is what Prometheus reads as `file_sd_configs`: `[{"targets": ["127.0.0.1:8000", "127.0.0.1:8001"]}]`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.config.models import Config
from shared.whole_file import write_whole

SCHEME = "http://"


@contextmanager
def announced(base_urls: Sequence[str], output_dir: Path) -> Iterator[None]:
    """Let `servers.json` name `base_urls` for as long as they are served."""
    file = _file(output_dir)
    targets = [{"targets": [url.removeprefix(SCHEME) for url in base_urls]}]
    write_whole(file, (json.dumps(targets) + "\n").encode())
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def announced_servers(config: Config) -> tuple[str, ...]:
    """The addresses that `boxloop serve` left in the output directory of `config`; none when it runs no servers."""
    file = _file(config.training.output_dir)
    if not file.exists():
        return ()
    return tuple(SCHEME + target for group in json.loads(file.read_text()) for target in group["targets"])


def _file(output_dir: Path) -> Path:
    return output_dir / "servers.json"
