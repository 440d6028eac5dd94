r"""The run log: one JSON document that is valid at every moment, and grows by one write a sample.

The file holds a header, the samples so far, blank space, and the closing part. JSON allows blanks between tokens, so
a sample is added by one `pwrite` of `,\n{...}` into the blank space; size and closing part stay as they are.
A sample never crosses a page boundary (what is left of a page stays blank), so that

- kill -9 cannot cut it in two: the kernel looks at signals between pages, not inside one;
- a reader gets valid JSON also when it reads in parts while samples are added (writing a longer closing part over
  the old one would give such a reader the new size with the old bytes, or the reverse);
- a full disk cannot stop it: the space is there already.

What no file system promises is that a read waits while a write copies its bytes: a reader that comes within those
tens of nanoseconds, once a sample, may see half of it, and reads again.

    {"format": 2,
    "run": {...},
    "samples": [
    {...},
    {...}                                  <- blanks, to be written over
    ],
    "stages": null,
    "summary": null}                       <- blanks up to the end of a page, so that a summary fits in its place

When the blank space is used up, the file is copied with more of it to a temporary file, which is renamed over it;
the space doubles, so a sample costs the same however long the run. `finish` writes the file anew in the same way,
without blanks and with the summary. Readers that hold the old file open keep an old, valid document.

An older log of the same name is replaced. Something there that is not a regular file (/dev/null) is left alone.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from typing import Final

FORMAT = 2

_PAGE: Final = 4096
_FIRST_SPACE: Final = 16 * _PAGE
_CHUNK: Final = 1024 * 1024


class RunLog:
    """A run log that is being written.

    Raises `OSError` from the constructor, `add` and `finish`: the log on disk is then what it was before the call.
    """

    def __init__(
        self, path: str | os.PathLike[str], run: Mapping[str, object], first_sample: Mapping[str, object]
    ) -> None:
        self.path = os.path.realpath(path)
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.path.lexists(self.path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise OSError(f"{self.path} is there and is not a regular file")
        self._fd = -1
        self._position = 0
        self._end = 0
        head = f'{{"format": {FORMAT},\n"run": {encode(run)},\n"samples": [\n{encode(first_sample)}'
        self._rewrite(head.encode("ascii"), _FIRST_SPACE, _closing({}, None))

    def add(self, sample: Mapping[str, object]) -> None:
        """Append a sample."""
        text = b",\n" + encode(sample).encode("ascii")
        start = self._place(len(text))
        if start is None:
            self._rewrite(text, max(_FIRST_SPACE, self._position), _closing({}, None))
        else:
            os.pwrite(self._fd, text, start)
            self._position = start + len(text)

    def finish(self, stages: Mapping[str, object], summary: Mapping[str, object]) -> None:
        """Put stages and summary in, give the blank space back, and close the file.

        On a full disk the summary goes in place of `null`, without stages, and the blank space stays.
        """
        try:
            self._rewrite(b"", 0, _closing(stages, summary))
        except OSError:
            closing = _closing({}, summary)
            if self._fd < 0 or len(closing) > _PAGE:
                raise
            os.pwrite(self._fd, closing, self._end)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Close the file as it is: a run that ended without a summary keeps `null`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _place(self, size: int) -> int | None:
        """Where `size` bytes fit into the blank space without crossing a page boundary, or None."""
        start = self._position
        if start // _PAGE != (start + size - 1) // _PAGE:
            start = (start // _PAGE + 1) * _PAGE
        return start if size <= _PAGE and start + size <= self._end else None

    def _rewrite(self, text: bytes, space: int, closing: bytes) -> None:
        """Replace the file by what it holds, `text`, at least `space` blanks (none for 0), and `closing`."""
        part = f"{self.path}.part"
        _remove(part)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            for offset in range(0, self._position, _CHUNK):
                _write(fd, os.pread(self._fd, min(_CHUNK, self._position - offset), offset))
            position = self._position + len(text)
            end = -(-(position + space) // _PAGE) * _PAGE if space else position
            _write(fd, text + b" " * (end - position) + (closing.ljust(_PAGE) if space else closing))
            os.rename(part, self.path)
        except OSError:
            os.close(fd)
            _remove(part)
            raise
        self.close()
        self._fd, self._position, self._end = fd, position, end


def encode(value: object) -> str:
    """Return `value` as one line of JSON in ASCII; what JSON has no word for becomes null or its `str`."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: object) -> object:
    """Return `value` with mappings, lists, strings and finite numbers only."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)


def _closing(stages: Mapping[str, object], summary: Mapping[str, object] | None) -> bytes:
    return f'\n],\n"stages": {encode(stages or None)},\n"summary": {encode(summary)}}}\n'.encode("ascii")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
