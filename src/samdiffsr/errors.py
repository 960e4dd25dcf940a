"""Errors a user can cause and mend. Each message is one sentence: what was wrong, with the value, and what to do."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


class SamDiffSRError(Exception):
    """Base of every error raised on purpose; the command line prints its message and exits with code 2."""


class ImageError(SamDiffSRError):
    """An image that cannot be read, written or processed."""


class UnknownFormatError(ImageError):
    """A file that is no image, or of a kind that is not read."""


class TooLargeError(ImageError):
    """An image with more pixels than allowed, or than memory holds."""


class MaskError(SamDiffSRError):
    """A mask or structure file that is missing, unreadable or does not fit its image."""


class CheckpointError(SamDiffSRError):
    """Weights that are missing, damaged or do not fit the model."""


class ConfigError(SamDiffSRError):
    """An option or a combination of options that cannot work."""


class TrainingError(SamDiffSRError):
    """A run that cannot go on."""


def choose(value: str, choices: dict, name: str):
    """Look `value` up in `choices`; a ConfigError names the valid choices otherwise."""
    try:
        return choices[value]
    except KeyError:
        known = ", ".join(repr(key) for key in choices)
        raise ConfigError(f"{name} is {value!r}, but must be one of {known}.") from None


@dataclass(frozen=True)
class Range:
    """The numbers that a setting can have, and the sentence for every other value.

    Attributes:
        name: of the setting, as the sentence says it.
        least, most: both can be given themselves.
        whole: only whole numbers.
    """

    name: str
    least: float
    most: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.least}" + ("" if self.most == math.inf else f" to {self.most}")

    def check(self, value: Any) -> Any:
        """The value, if it is in the range; a ConfigError otherwise."""
        number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        if not (number and self.least <= value <= self.most):  # pyright: ignore[reportOperatorIssue] - NaN is in no range
            raise ConfigError(f"{self.name} is {value!r}, but must be {self}.")
        return value

    def parse(self, text: str) -> Any:
        """The number that a user wrote; a ConfigError if it is none of the range."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            return self.check(text)
        return self.check(value)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
