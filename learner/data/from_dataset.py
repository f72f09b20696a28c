"""`python -m learner.data.from_dataset DIR_OR_FILE --out FILE.jsonl`: annotations of any known format to JSONL."""

import argparse
from collections.abc import Sequence

from learner.data.dataset import exit_code_of, write_dataset
from learner.data.formats.format import Places
from learner.data.formats.table import FORMATS, open_dataset
from shared.config.paths import user_path
from shared.console import run_main
from shared.errors import DataError

EXAMPLES = "\n".join(
    ["formats, each with what it is recognised by and an example:"]
    + [f"\n  {each.name}: {each.layout}\n    boxloop data from {each.example}" for each in FORMATS.values()]
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boxloop data from",
        description="Convert annotations to JSONL. Every object is written, or counted with why it is not.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", type=user_path, metavar="DIR_OR_FILE", help="data set, or its file of annotations")
    parser.add_argument("--out", type=user_path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--format", choices=FORMATS, help="which format it is in, where that is not plain")
    parser.add_argument("--split", metavar="NAME", help="which split, where there are several")
    parser.add_argument(
        "--images", type=user_path, metavar="DIR", help="folder of the image files, where it is another"
    )
    parser.add_argument("--geometry", choices=("bbox_2d", "poly"), default="bbox_2d")
    parser.add_argument("--classes", action="store_true", help="write the names of all classes into each record")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when something could not be converted or will be refused, as the rest is written; 2 when nothing was."""
    options = parser().parse_args(arguments)
    place, images = options.place.resolve(), options.images

    def convert() -> int:
        if images is not None and not images.is_dir():
            raise DataError(f"--images {images} is no folder")
        places = Places(images and images.resolve(), options.out.resolve())
        dataset = open_dataset(place, places, options.format, options.split)
        return write_dataset(dataset, place, options.out, options.geometry, with_classes=options.classes)

    return exit_code_of(options.place, convert)


if __name__ == "__main__":
    run_main(main)
