"""XML of annotation tools, an element at a time: nothing that it declares is believed, so nothing can grow."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from shared.errors import DataError

_PIECE_BYTES = 1 << 16
_MOST_DEPTH = 64
_BROKEN = (expat.ExpatError, ValueError, LookupError)
"""What a file raises that is no XML or in an encoding that is not known."""


def children_of_root(path: Path, root: str) -> Iterator[Element]:
    """Yield each element of a document whose outermost element is `root`, as soon as it has ended.

    Raises OSError, and DataError for what is no such document; one with a document type, and so entities, is refused.
    """
    builder = _ChildBuilder(root)
    with path.open("rb") as file:
        try:
            while piece := file.read(_PIECE_BYTES):
                builder.parser.Parse(piece)
                yield from builder.taken()
            builder.parser.Parse(b"", True)
        except _BROKEN as error:
            raise DataError(f"this is no XML: {error}") from None
    yield from builder.taken()


def root_of(path: Path) -> str:
    """The name of a document's outermost element; empty for what is none, or cannot be read."""
    names: list[str] = []
    parser = expat.ParserCreate()

    def begin(name: str, attributes: object) -> None:
        names.append(name)
        parser.StartElementHandler = None
        raise _Seen

    parser.StartElementHandler = begin
    try:
        with path.open("rb") as file:
            parser.Parse(file.read(_PIECE_BYTES))
    except (OSError, _Seen, *_BROKEN):
        pass
    return names[0] if names else ""


class _Seen(Exception):
    """Ends a look at a document."""


class _ChildBuilder:
    """Builds the children of a root, of which each is forgotten once it was taken."""

    def __init__(self, root: str) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._refuse
        self._root = root
        self._depth = 0
        self._builder = TreeBuilder()
        self._ready: list[Element] = []

    def taken(self) -> list[Element]:
        """The children that have ended since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and name != self._root:
            raise DataError(f"its outermost element is <{name[:40]}>, not <{self._root}>")
        if self._depth == 1:
            self._builder = TreeBuilder()
        if self._depth:
            self._builder.start(name, attributes)
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise DataError(f"elements lie more than {_MOST_DEPTH} deep")

    def _end(self, name: str) -> None:
        self._depth -= 1
        if self._depth:
            self._builder.end(name)
        if self._depth == 1:
            self._ready.append(self._builder.close())

    def _text(self, text: str) -> None:
        if self._depth > 1:
            self._builder.data(text)

    def _refuse(self, *_: object) -> NoReturn:
        raise DataError("it declares a document type, which may hold entities; take the <!DOCTYPE …> out")
