import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_and_the_audio_libraries_can_be_imported_whatever_comes_first() -> None:
    rest = "torchvision.transforms.v2.functional, torchaudio; from transformers import Qwen3VLProcessor"
    side_by_side = [
        subprocess.Popen([sys.executable, "-c", f"import {first}, {rest}"], stderr=subprocess.PIPE, text=True)
        for first in ("torch", "transformers.utils.import_utils")
    ]
    for process in side_by_side:
        told = process.communicate()[1]
        assert process.returncode == 0, told
