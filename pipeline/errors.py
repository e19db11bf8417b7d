"""One family of exceptions; each is a sentence and carries its data."""

from __future__ import annotations

from pipeline.contract.wording import backfill_of


class KeytallyError(Exception):
    """Something a user can act on. `str()` of it is one line: what is wrong and what to do next.

    What it carries is what it is made from, in that order.
    """

    def __reduce__(self) -> tuple[type[KeytallyError], tuple[object, ...]]:
        # Sent from a worker, it is made anew: by itself, it would be made from its sentence.
        return type(self), tuple(self.__dict__.values()) or self.args


class InterruptedRunError(KeytallyError):
    """A person or a supervisor stopped the command before it was done."""

    def __init__(
        self, what: str = "interrupted; readers see a whole version, and running the command again does what is left"
    ) -> None:
        super().__init__(what)


class HeldBack(KeytallyError):
    """A raw file that cannot be read whole and right, so nothing of its present content counts."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} is held back: {reason}")
        self.file = file
        self.reason = reason


class BadPrices(KeytallyError):
    """A price book or a table of rates that cannot be used. row: as a spreadsheet counts, the header is 1."""

    def __init__(self, file: str, row: int | None, column: str | None, what: str) -> None:
        where = "".join(f", {noun} {named}" for noun, named in (("row", row), ("column", column)) if named)
        super().__init__(f"{file}{where}: {what}; until then what is published stays as it is")
        self.file = file
        self.row = row
        self.column = column
        self.what = what


class FormatRefused(KeytallyError):
    """A format that cannot be used. `str()` of it names its file, and the column where it is about one."""


class ArtifactDamaged(KeytallyError):
    """A file of ours that is gone, or whose bytes are not those its name was given for."""

    def __init__(self, artifact: str, what: str) -> None:
        super().__init__(f"{artifact} {what}; run {backfill_of(artifact)} to rebuild it from the raw logs")
        self.artifact = artifact
        self.what = what


class CheckFailed(KeytallyError):
    """A conservation law that does not hold. Nothing of the run is published."""

    def __init__(self, check: str, partition: str, expected: object, got: object) -> None:
        super().__init__(
            f"check '{check}' failed for {partition}: expected {expected}, got {got}; nothing was published"
        )
        self.check = check
        self.partition = partition
        self.expected = expected
        self.got = got


class NotDurable(KeytallyError):
    """A version that is published, but may not have reached the disk."""

    def __init__(self, version: int, reason: str) -> None:
        super().__init__(
            f"version {version} is published, but could not be brought to the disk ({reason}): a power cut may still"
            " take it back; see to the disk and run the command again"
        )
        self.version = version
        self.reason = reason


class CommitRefused(KeytallyError):
    """Another writer published first. Reload, recompute, try again."""

    def __init__(self, version: int) -> None:
        super().__init__(f"another run published after version {version}; run the command again")
        self.version = version
