"""Pictures beside a result: where seeds disagree, and the structure map."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samdiffsr.errors import ConfigError
from samdiffsr.images import Picture, read_image, write_image
from samdiffsr.images.picture import Animation
from samdiffsr.structure import draw_structure
from samdiffsr.upscale.enlarge import enlarge
from samdiffsr.upscale.settings import Settings
from support import upscale_with


@pytest.mark.parametrize("depth", [8, 16])
def test_uncertainty_is_where_three_seeds_disagree(tiny_pipe: Any, tmp_path: Path, depth: int) -> None:
    rgb = np.random.default_rng(0).integers(60, 190, (6, 5, 3)).astype(np.uint8)
    picture = Picture(rgb if depth == 8 else rgb.astype(np.uint16) * 257)
    write_image(picture, tmp_path / "a.png")
    upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "plain", seed=4)
    parts: list[float] = []
    seen = lambda now: parts.append(now.part)  # noqa: E731
    assert (
        upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "o", seed=4, uncertainty=True, on_progress=seen).failed
        == []
    )
    assert parts == sorted(parts) and parts[-1] == 1
    assert (tmp_path / "o" / "a_x4.png").read_bytes() == (tmp_path / "plain" / "a_x4.png").read_bytes()
    results = np.stack([enlarge(tiny_pipe, picture, Settings(seed=seed)).rgb for seed in (4, 5, 6)]).astype(float)
    deviation = np.sqrt(results.var(axis=0, ddof=1).mean(axis=2)) / (1 if depth == 8 else 257)
    shown = read_image(tmp_path / "o" / "a_x4_uncertainty.png")
    assert shown.grey and np.abs(shown.rgb[..., 0] - np.minimum(deviation * 8, 255)).max() <= 0.51
    assert deviation.max() > 0.5
    again = upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "o", uncertainty=True)
    assert len(again.failed) == 1 and "exists already" in again.failed[0][1]


@pytest.mark.parametrize("uncertainty", [False, True])
def test_the_structure_map_is_saved_as_the_pipeline_returns_it(
    tiny_pipe: Any, tmp_path: Path, uncertainty: bool
) -> None:
    rgb = np.repeat(np.repeat(np.random.default_rng(1).integers(0, 256, (3, 4, 3)), 6, 0), 6, 1).astype(np.uint8)
    write_image(Picture(rgb), tmp_path / "a.png")
    options = {"structure": "felzenszwalb", "save_structure": True, "uncertainty": uncertainty}
    assert upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "o", **options).failed == []
    shown = read_image(tmp_path / "o" / "a_x4_structure.png").rgb
    out = tiny_pipe(rgb, structure="felzenszwalb", return_structure=True, output_type="uint8")
    np.testing.assert_array_equal(shown, draw_structure(out.structures[0]))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 2
    names = {"a_x4.png", "a_x4_structure.png"} | ({"a_x4_uncertainty.png"} if uncertainty else set())
    assert {file.name for file in (tmp_path / "o").iterdir()} == names
    again = upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "o", **options)
    assert len(again.failed) == 1 and "exists already" in again.failed[0][1]


@pytest.mark.parametrize("scale", [2, 5])
def test_the_structure_map_has_the_size_of_the_result(tiny_pipe: Any, scale: float) -> None:
    seen: list[np.ndarray] = []
    settings = Settings(scale=scale, structure="felzenszwalb")
    frame = Picture(np.full((5, 6, 3), 90, np.uint8))
    moving = replace(frame, animation=Animation((frame,), (40.0, 40.0), 0))
    enlarge(tiny_pipe, moving, settings, on_structure=seen.append)
    assert [one.shape for one in seen] == [(5 * scale, 6 * scale, 3)]


@pytest.mark.parametrize(
    ("structure", "reason"), [("auto", "this model has no structure head"), ("none", "structure 'none' has no")]
)
def test_where_no_structure_map_is_used_none_can_be_saved(
    tiny_pipe: Any, tmp_path: Path, structure: str, reason: str
) -> None:
    write_image(Picture(np.zeros((5, 6, 3), np.uint8)), tmp_path / "a.png")
    with pytest.raises(ConfigError, match=reason):
        upscale_with(tiny_pipe, [tmp_path / "a.png"], tmp_path / "o", structure=structure, save_structure=True)
    assert not (tmp_path / "o" / "a_x4.png").exists()
