"""A stock checkpoint made trainable: `python -m learner.checkpoints.init MODEL --out DIR`.

Adds the 1000 coordinate tokens to the tokenizer and a row for each to embeddings and head. What has them is copied.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from shared.checkpoint_facts import checkpoint_folder, holds_adapters
from shared.config.paths import user_path
from shared.console import settle_streams
from shared.errors import BoxloopError, ConfigError, DataError
from shared.families.table import facts_in
from shared.run_folder import check_writable
from shared.whole_folder import whole_folder

STALE = ("added_tokens.json", "special_tokens_map.json")
"""Lists of tokens that older tokenizers keep beside tokenizer.json; the old ones know nothing of the new tokens."""


def init(model: str, out: Path) -> Iterator[str]:
    """Write `model`, a folder or hub id, to `out` with coordinate tokens, whole or not at all; says what it did.

    Rows that a model has are left as they are, unless all those of the coordinates are one row: such hold nothing. A
    model that has its tokens and rows is copied, or left where it is when `out` is its own folder. Raises ConfigError
    for what cannot be loaded and for an `out` that is taken, and DataError for a tokenizer that cannot take the tokens.
    """
    check_writable(out, "--out")
    folder = checkpoint_folder(model)
    if holds_adapters(folder):
        raise ConfigError(f"{folder} holds adapters; make a whole model of it first: boxloop export {folder} --out DIR")
    facts_in(folder)
    # Here, so that `--help` and a wrong path do not wait for torch.
    from learner.model.coordinate_rows import indistinct_matrices

    tokenizer = _tokenizer_of(folder)
    num_added = _add_tokens(tokenizer)
    ids = _coordinate_ids(tokenizer)
    has_rows = max(ids) < _vocab_size(folder)
    is_whole = not num_added and has_rows and not indistinct_matrices(folder, ids)
    if is_whole and out.resolve() == folder.resolve():
        yield f"{folder} has its coordinate tokens, ids {min(ids)} to {max(ids)}; left as it is"
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} exists and is not empty; name a new folder")
    if is_whole:
        yield f"{folder} has its coordinate tokens, ids {min(ids)} to {max(ids)}; no row is changed"
        with whole_folder(out) as written:
            shutil.copytree(folder, written, dirs_exist_ok=True)
        yield f"{out}: copied"
        return
    yield f"{num_added or 'no'} coordinate tokens added, ids {min(ids)} to {max(ids)}"
    yield from _write(folder, tokenizer, ids, out, has_rows=not num_added and has_rows)
    yield f"{out}: written; next is Stage 1, configs/stage1, with model.model={out}"


def _write(folder: Path, tokenizer: Any, ids: tuple[int, ...], out: Path, *, has_rows: bool) -> Iterator[str]:
    """Load the model, make the rows that it lacks, and write all of it."""
    from learner.checkpoints.checkpoint import copy_companions
    from learner.model.coordinate_rows import indistinct_matrices

    model = _load(folder)
    only = indistinct_matrices(folder, ids) if has_rows else ("embeddings", "head")
    yield from _make_rows(model, ids, only)
    with whole_folder(out, sum(each.nbytes for each in model.parameters())) as written:
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        copy_companions(folder, written)
        for name in STALE:
            (written / name).unlink(missing_ok=True)
        if _coordinate_ids(_tokenizer_of(written)) != ids or max(ids) >= _vocab_size(written):
            raise DataError(f"{folder}: its tokenizer does not keep tokens that are added; use another checkpoint")


def _make_rows(model: Any, ids: tuple[int, ...], only: Sequence[str]) -> Iterator[str]:
    """Give embeddings and head a row for each token, and make the coordinate rows of those in `only` anew."""
    from learner.model.coordinate_rows import write_coordinate_rows

    num_rows = model.get_input_embeddings().num_embeddings
    if num_rows <= max(ids):
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        yield f"embeddings: {num_rows} rows resized to {max(ids) + 1}"
    num_known = min(min(ids), num_rows)
    matrix, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for kind, weight in (("embeddings", matrix), ("head", head)):
        if weight is matrix and kind == "head":
            yield "head: tied to the embeddings"
        elif kind in only:
            rms = write_coordinate_rows(weight.data, ids, num_known)
            yield f"{kind}: 1000 rows smooth in the bin, rms {rms:.3g} as that of the others"


def _add_tokens(tokenizer: Any) -> int:
    """Add the coordinate tokens that a tokenizer lacks: all or none. Raises DataError for one that has some."""
    from tokenizers import AddedToken

    from learner.detection.vocabulary import NUM_BINS, coordinate_text

    texts = [coordinate_text(bin) for bin in range(NUM_BINS)]
    known = tokenizer.get_vocab()
    missing = [text for text in texts if text not in known]
    if 0 < len(missing) < NUM_BINS:
        raise DataError(
            f"the tokenizer has {NUM_BINS - len(missing)} of the {NUM_BINS} coordinate tokens and lacks {missing[0]}; "
            "use a checkpoint with all or none"
        )
    added = [AddedToken(text, special=True, normalized=False) for text in missing]
    return int(tokenizer.add_tokens(added, special_tokens=True))


def _coordinate_ids(tokenizer: Any) -> tuple[int, ...]:
    from learner.detection.vocabulary import CoordinateVocabulary

    return CoordinateVocabulary.from_tokenizer(tokenizer).coordinate_ids


def _vocab_size(folder: Path) -> int:
    from learner.data.opening import vocab_size_of

    return vocab_size_of(folder)


def _tokenizer_of(folder: Path) -> Any:
    from learner.families.load import load_tokenizer

    with _loading(folder, "tokenizer"):
        return load_tokenizer(str(folder))


def _load(folder: Path) -> Any:
    """The model in the type of its checkpoint, as transformers has it."""
    from pkgutil import resolve_name

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with _loading(folder, "model"):
        return resolve_name(facts_in(folder).transformers_class).from_pretrained(folder, dtype="auto")


@contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"the {what} of {folder} cannot be loaded: {error}") from error


def main(arguments: Sequence[str]) -> int:
    """Make a checkpoint trainable and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="boxloop init", description="Give a stock checkpoint the coordinate tokens that training needs."
    )
    parser.add_argument("model", help="folder or hub id of a Qwen3-VL checkpoint")
    parser.add_argument("--out", type=user_path, required=True, help="folder to write; must not exist or be empty")
    settle_streams()
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        for line in init(options.model, options.out):
            console.print(line, markup=False)
    except BoxloopError as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    from shared.companions import tolerate_cuda_builds

    tolerate_cuda_builds()  # before anything imports transformers
    sys.exit(main(sys.argv[1:]))
