"""Where the file transport's folder lies when the configuration leaves it open: both processes must say the same."""

import os
import tempfile
from hashlib import blake2b
from pathlib import Path

from shared.config.rollout import SyncSection

SHARED_MEMORY = Path("/dev/shm")


def weights_root(sync: SyncSection, output_dir: Path) -> Path:
    """`sync.weights_root`, or a folder in shared memory (else in the temporary folder) that belongs to the run.

    The run is told by its user and its output directory, so that two runs on one machine do not meet.
    """
    if sync.weights_root is not None:
        return sync.weights_root
    base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    run = blake2b(str(output_dir.resolve()).encode(), digest_size=6).hexdigest()
    return base / f"boxloop-{os.getuid()}-{run}"
