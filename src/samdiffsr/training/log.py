"""The records of a run: metrics.jsonl and validation.jsonl, TensorBoard, and a callback for a progress bar."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from samdiffsr.files import write_whole

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"

OnUpdate = Callable[[int, dict[str, float]], None]


class Log:
    """Records of updates, one JSON object a line; those after `update` are cut off, for they will come again.

    Args:
        folder: of the stage. update: updates done before.
        tensorboard: also write `folder`/tensorboard.
        active: False writes nothing and calls nobody, as in every process but the first.
        on_update: called with (update, record).
    """

    def __init__(self, folder: Path, *, update: int, tensorboard: bool, active: bool, on_update: OnUpdate) -> None:
        self.folder, self.active, self.on_update, self.writer = folder, active, on_update, None
        if not active:
            return
        for name in (METRICS, VALIDATION):
            _cut(folder / name, update)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def update(self, update: int, record: dict[str, float]) -> None:
        """Loss terms and times of one update."""
        self._write(METRICS, update, record)
        if self.active:
            self.on_update(update, record)

    def validation(self, update: int, scores: dict[str, float], panel: np.ndarray | None) -> None:
        """Scores and, if there is one, the panel of pictures, uint8 (H, W, 3), which becomes panels/UPDATE.png."""
        self._write(VALIDATION, update, scores)
        if self.active and panel is not None:
            file = self.folder / "panels" / f"{update:08d}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(panel).save(file)
            if self.writer is not None:
                self.writer.add_image("validation/lr | ours | hr", panel, update, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard's files."""
        if self.writer is not None:
            self.writer.close()

    def _write(self, name: str, update: int, record: dict[str, float]) -> None:
        if not self.active:
            return
        with open(self.folder / name, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"update": update} | record) + "\n")
        if self.writer is not None:
            for key, value in record.items():
                self.writer.add_scalar(f"{name.removesuffix('.jsonl')}/{key}", value, update)


def _cut(file: Path, update: int) -> None:
    """Drop the records after `update`, and a last line that a kill left unfinished."""
    if not file.exists():
        return
    lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["update"] <= update]
    write_whole("".join(kept).encode(), file)
