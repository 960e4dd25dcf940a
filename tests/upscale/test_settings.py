"""Every setting is checked where it is declared: a wrong value is one sentence, wherever it comes from."""

import inspect
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest

from samdiffsr import SamDiffSRPipeline
from samdiffsr.errors import ConfigError, Range
from samdiffsr.upscale.settings import FileSettings, Settings, from_text
from samdiffsr.upscale.size import OutputSize


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, "steps is 0, but must be a whole number from 1."),
        ("steps", 2.5, "steps is 2.5, but must be a whole number from 1."),
        ("steps", True, "steps is True, but must be a whole number from 1."),
        ("detail", 2.1, "detail is 2.1, but must be a number from 0 to 2."),
        ("detail", -0.1, "detail is -0.1, but must be a number from 0 to 2."),
        ("detail", float("nan"), "detail is nan, but must be a number from 0 to 2."),
        ("detail", "0.5", "detail is '0.5', but must be a number from 0 to 2."),
        ("clean", 1.1, "clean is 1.1, but must be a number from 0 to 1."),
        ("seed", -1, "seed is -1, but must be a whole number from 0 to 9223372036854775807."),
        ("seed", None, "seed is None, but must be a whole number"),
        ("tile", -8, "tile is -8, but must be a whole number from 0."),
        ("scale", 17, "The scale is 17, but must be from 1 to 16."),
        ("size", "big", "The size is 'big', but must look like 1920x1080, 1920x or x1080."),
    ],
)
def test_wrong_settings_of_a_picture(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**{name: value})
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": "gif"}, "format is 'gif', but must be one of 'auto', 'png', 'jpg', 'webp', 'tiff', 'avif', 'jxl'."),
        ({"quality": 0}, "quality is 0, but must be a whole number from 1 to 100."),
        ({"quality": 101}, "quality is 101, but must be a whole number from 1 to 100."),
        ({"max_pixels": 0}, "max_pixels is 0, but must be a whole number from 1."),
        ({"max_pixels": None}, "max_pixels is None, but must be a whole number from 1."),
        (
            {"overwrite": True, "skip_existing": True},
            "overwrite and skip_existing contradict each other; give one of them.",
        ),
    ],
)
def test_wrong_settings_of_files(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FileSettings(**given)
    assert str(caught.value) == words


def test_ends_of_ranges_and_numbers_of_numpy_are_taken() -> None:
    settings = Settings(detail=2, steps=np.int64(1), tile=0, seed=2**63 - 1)
    assert (settings.detail, settings.steps, settings.tile) == (2, 1, 0)
    assert FileSettings(quality=100, max_pixels=1).quality == 100
    assert str(Range("x", 0.5, 1)) == "a number from 0.5 to 1"


def test_output_size() -> None:
    assert Settings().output_size == OutputSize(scale=4)
    assert Settings(scale=2.5).output_size == OutputSize(scale=2.5)
    assert Settings(size="1920x").output_size == OutputSize(width=1920)
    with pytest.raises(ConfigError, match="scale 2 and size 9x contradict each other"):
        Settings(scale=2, size="9x")


def test_the_pipeline_takes_what_it_is_given() -> None:
    arguments = Settings(steps=3, detail=0.5, tile=8).pipeline_arguments()
    assert arguments == {
        "num_inference_steps": 3,
        "detail": 0.5,
        "clean": None,
        "structure": "auto",
        "tile": 8,
        "precision": "auto",
    }
    assert set(Settings().pipeline_arguments()) <= set(inspect.signature(SamDiffSRPipeline.__call__).parameters)


def test_every_setting_has_its_words() -> None:
    for kind in (Settings, FileSettings):
        for field in fields(kind):
            words = field.metadata
            assert words["help"].endswith("."), field.name
            assert (field.default is None) >= bool(words["unset"]), field.name


def test_settings_from_text() -> None:
    given = {"scale": "2.5", "seed": "7", "consistency": "true", "detail": "1"}
    assert from_text(Settings, given) == Settings(scale=2.5, seed=7, consistency=True, detail=1.0)
    assert from_text(FileSettings, {"format": "jpg", "overwrite": "0"}) == FileSettings(format="jpg")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sharpness": "1"}, "the setting is 'sharpness', but must be one of 'scale', 'size', 'steps'"),
        ({"steps": "2.5"}, "steps is '2.5', but must be a whole number."),
        ({"detail": "much"}, "detail is 'much', but must be a number."),
        ({"detail": "3"}, "detail is 3.0, but must be a number from 0 to 2."),
        ({"consistency": "perhaps"}, "consistency is 'perhaps', but must be one of 'true', 'false'"),
    ],
)
def test_text_that_is_no_setting(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_text(Settings, given)
    assert str(caught.value).startswith(words)


def test_any_dataclass_can_come_from_text() -> None:
    @dataclass(frozen=True)
    class Options:
        number: int = 1
        share: float = 0.5

    assert from_text(Options, {"share": "1e-3"}) == Options(1, 0.001)


def test_clean_and_consistency_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"consistency brings back the noise that clean, 0\.5, removes"):
        Settings(clean=0.5, consistency=True)
    assert Settings(clean=0, consistency=True).pipeline_arguments()["clean"] == 0
    assert Settings(consistency=True).pipeline_arguments()["clean"] == 0  # not estimated either
    assert Settings().pipeline_arguments()["clean"] is None


def test_auto_leaves_the_choice_open() -> None:
    settings = from_text(Settings, {"clean": "auto", "steps": "auto"})
    assert settings == Settings()
    assert from_text(Settings, {"clean": "0.25"}).clean == 0.25
    assert from_text(FileSettings, {"format": "auto"}).format == "auto"
