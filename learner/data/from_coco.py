"""`python -m learner.data.from_coco ANNOTATIONS.json --images DIR --out FILE.jsonl`: COCO and LVIS JSON to JSONL."""

import argparse
from collections.abc import Sequence

from learner.data.coco import coco_dataset, read_annotations
from learner.data.dataset import exit_code_of, write_dataset
from shared.config.paths import user_path
from shared.console import run_main
from shared.errors import DataError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boxloop data from-coco", description="Convert COCO or LVIS annotations.")
    parser.add_argument("annotations", type=user_path, metavar="ANNOTATIONS.json")
    parser.add_argument("--images", type=user_path, required=True, metavar="DIR", help="folder of the image files")
    parser.add_argument("--out", type=user_path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--geometry", choices=("bbox_2d", "poly"), default="bbox_2d")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when records will be refused, as they are written; 2 when nothing was written."""
    options = parser().parse_args(arguments)

    def convert() -> int:
        if not options.images.is_dir():
            raise DataError(f"--images {options.images} is no folder")
        dataset = coco_dataset(read_annotations(options.annotations.read_bytes()), options.images.resolve())
        return write_dataset(dataset, options.annotations, options.out, options.geometry)

    return exit_code_of(options.annotations, convert)


if __name__ == "__main__":
    run_main(main)
