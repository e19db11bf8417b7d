"""The standard streams of a command: one may be closed, its disk may be full, and its reader may have gone.

What a run published is published, whether or not its report can be written.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from typing import Any, TextIO

from pipeline.contract.wording import visible


def prepare_streams() -> None:
    """Make standard output and standard error safe to write to for the rest of this process.

    A stream that the caller closed becomes /dev/null. Otherwise the next file that is opened would get its descriptor,
    and messages would be written into that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lenient(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lenient(sys.stderr, 2)


def output_error() -> OSError | None:
    """Write what standard output still holds. Return the first error that it met; None if all was written."""
    sys.stdout.flush()
    written = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return written.error if isinstance(written, _Output) else None


def keep_logs_visible() -> None:
    """Let every log message of the pipeline show the characters that cannot be printed as escapes."""
    make = logging.getLogRecordFactory()

    def make_visible(name: str, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(name, *arguments, **named)
        if name.partition(".")[0] == "pipeline":
            record.msg, record.args = visible(record.getMessage()), None
        return record

    logging.setLogRecordFactory(make_visible)


def json_text(document: Any) -> str:
    """Return a document as JSON in one line, without characters that cannot be printed."""
    text = json.dumps(document, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in text)


class _Output(io.RawIOBase):
    """The bytes of a stream. The first error is kept and not raised; what follows it is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                self.error = error
        return len(memoryview(data).cast("B"))


def _lenient(stream: TextIO | None, descriptor: int) -> TextIO:
    output = _Output(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=stream.encoding if stream else "utf-8",
        errors=(stream.errors if stream else None) or "backslashreplace",
        line_buffering=descriptor == 2 or output.isatty(),
    )
