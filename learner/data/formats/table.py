"""All formats, and which of them a folder or a file is in."""

from pathlib import Path

from learner.data.annotations import Dataset
from learner.data.formats.coco_folder import COCO
from learner.data.formats.cvat import CVAT
from learner.data.formats.format import WHOLE, Opener, Places, Splits
from learner.data.formats.huggingface import HUGGINGFACE
from learner.data.formats.labelme import LABELME
from learner.data.formats.voc import VOC
from learner.data.formats.yolo import YOLO
from shared.errors import DataError

FORMATS = {each.name: each for each in (COCO, YOLO, VOC, LABELME, CVAT, HUGGINGFACE)}


def open_dataset(place: Path, places: Places, name: str | None = None, split: str | None = None) -> Dataset:
    """What lies at `place`, in the format of this name or the one that it is recognised by.

    Raises DataError for a place in no format or in several, and for a split that must be named or is not there.
    """
    if not place.exists():
        raise DataError("there is no such file or folder")
    return _chosen(_recognised(place, name), split)(places)


def _recognised(place: Path, name: str | None) -> Splits:
    formats = FORMATS.values() if name is None else [FORMATS[name]]
    found = [(each, splits) for each in formats if (splits := each.find(place))]
    if not found:
        layouts = "; ".join(f"{each.name}: {each.layout}" for each in formats)
        raise DataError(f"these are no annotations in a format that is known here ({layouts})")
    if len(found) > 1:
        told = " and ".join(f"{each.name} ({each.layout})" for each, _ in found)
        raise DataError(f"this may be {told}; say which by --format {found[0][0].name}")
    return found[0][1]


def _chosen(splits: Splits, split: str | None) -> Opener:
    names = [*filter(None, splits)]
    listed = f"its splits are {', '.join(names)}" if names else "it has no splits"
    if split is not None:
        if split in names:
            return splits[split]
        raise DataError(f"--split {split} is not there; {listed}")
    if WHOLE in splits:
        return splits[WHOLE]
    if len(names) == 1:
        return splits[names[0]]
    raise DataError(f"{listed}; name one of them, such as --split {names[0]}")
