"""The header of a safetensors file, read and written without torch: 8 bytes of length, little-endian, then JSON."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shared.weight_wire import Dtype, TensorSpec

ALIGNMENT = 8
MAX_HEADER_BYTES = 2**26
ITEM_BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
CODES: Mapping[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What safetensors call the types of the wire."""
_DTYPES: Mapping[str, Dtype] = {code: dtype for dtype, code in CODES.items()}


def write_header(tensors: Iterable[TensorSpec]) -> bytes:
    """The head of a file that holds these tensors one behind the other, filled up with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        offsets = [begin, end]
        entries[tensor.name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    told = json.dumps(entries).encode()
    told += b" " * (-len(told) % ALIGNMENT)
    return len(told).to_bytes(8, "little") + told


def read_header(file: Path) -> dict[str, Any]:
    """What lies in a file by name, as safetensors says it, without the metadata. Raises ValueError for another file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def read_shapes(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type, in the words of the wire where it has one, and shape of each tensor. Raises ValueError."""
    try:
        return {
            name: (_DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
            for name, entry in read_header(file).items()
        }
    except (TypeError, KeyError) as error:
        raise ValueError(f"its header lacks what each tensor has: {error!r}") from error
