"""The pictures of the documentation are made by one command, and the pages show exactly those."""

import re

import numpy as np
from PIL import Image

from samdiffsr.images import Picture
from samdiffsr.upscale.enlarge import enlarge
from support import EXAMPLES, ROOT

DOCS = ROOT / "docs"


def test_one_command_makes_all_pictures(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import gallery

    gallery.write(lambda image, settings: enlarge(tiny_pipe, Picture(np.asarray(image)), given(settings)).rgb, tmp_path)
    made = {file.relative_to(tmp_path).as_posix(): Image.open(file).size for file in tmp_path.rglob("*.*")}
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)) == set(made)
    assert {name: Image.open(DOCS / name).size for name in made} == made  # those of the repository are of this script
    assert {file.name for file in (DOCS / "gallery").iterdir()} == {name[8:] for name in made if name[:8] == "gallery/"}
    for name, (width, height) in made.items():
        if name.endswith("-before.webp"):
            assert made[name.replace("before", "after")] == (4 * width, 4 * height)


def given(settings):
    """The tiny model cannot clean."""
    return type(settings)()


def test_the_gallery_is_small():
    assert sum(file.stat().st_size for file in (DOCS / "gallery").iterdir()) < 400_000
