"""docs/training.md, run as written: own photographs to own model in four commands."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from samdiffsr.cli import main

ROOT = Path(__file__).parents[1]


def test_the_four_commands_of_the_guide(tmp_path, monkeypatch):
    text = (ROOT / "docs/training.md").read_text()
    block = re.search(r"## Four commands\n.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block, "docs/training.md has no block of four commands"
    commands = [shlex.split(line) for line in block.group(1).splitlines()]
    assert [command[:2] for command in commands] == [
        ["samdiffsr", verb] for verb in ("masks", "prepare", "train", "upscale")
    ]
    originals = sorted((ROOT / "examples/originals").glob("*.png"))
    (tmp_path / "photos").mkdir()
    for number, place in enumerate(((0, 0), (64, 32), (32, 64), (96, 96))):
        picture = Image.open(originals[number % len(originals)]).convert("RGB")
        picture.crop((*place, place[0] + 72, place[1] + 64)).save(tmp_path / f"photos/{number}.png")
    Image.open(originals[0]).convert("RGB").crop((100, 100, 112, 109)).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main(command[1:])
        assert end.value.code == 0, command
    assert Image.open("large.png").size == (48, 36)
    assert sorted(path.name for path in Path("masks").glob("*.json")) == [f"{number}.json" for number in range(4)]
