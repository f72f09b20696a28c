import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("first", ["torch", "transformers.utils.import_utils"])
def test_torchvision_and_the_audio_libraries_can_be_imported_whatever_comes_first(first: str) -> None:
    code = (
        f"import {first}, torchvision.transforms.v2.functional, torchaudio; from transformers import Qwen3VLProcessor"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
