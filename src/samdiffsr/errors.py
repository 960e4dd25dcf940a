"""Errors a user can cause and mend. Each message is one sentence: what was wrong, with the value, and what to do."""


class SamDiffSRError(Exception):
    """Base of every error raised on purpose; the command line prints its message and exits with code 2."""


class ImageError(SamDiffSRError):
    """An image that cannot be read, written or processed."""


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


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
