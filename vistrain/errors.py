"""The three errors that are the user's to mend; each ends a command in one line and exit code 2.

Anything else that escapes is a bug of vistrain: full traceback, exit code 1.
"""

from __future__ import annotations


class VistrainError(Exception):
    """An error with a place, a problem and a remedy.

    Args:
        where: dotted config key, or the file, that is at fault.
        problem: what is wrong with it, in a few words.
        remedy: what to do about it (the nearest valid name, a command, a file to fetch); may be empty.
    """

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}" + (f" - {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[VistrainError], tuple[str, str, str]]:
        # Errors cross process boundaries (data workers); the default would replay the joined message alone.
        return type(self), (self.where, self.problem, self.remedy)


class ConfigError(VistrainError):
    """A key, a type or a combination in the config is wrong; `where` is its dotted key."""


class DataError(VistrainError):
    """A data file is missing or wrong; `where` is the file (and the item in it)."""


class WeightsError(VistrainError):
    """A checkpoint cannot be read, or does not fit the model; `where` is the file."""
