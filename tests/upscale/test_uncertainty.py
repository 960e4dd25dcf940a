"""The picture of where seeds disagree, beside a result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samdiffsr.images import Picture, read_image, write_image
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
