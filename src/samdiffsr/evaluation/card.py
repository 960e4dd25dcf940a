"""A model goes to the Hugging Face Hub with its card: what it is, how to use it, and figures that were measured with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samdiffsr.errors import CheckpointError, ConfigError
from samdiffsr.evaluation.methods import digest_of_model
from samdiffsr.models.hub import FILES, check_repository, read_card, upload

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

CARD = "README.md"
_TAGS = ["super-resolution", "diffusion", "samdiffsr", "sam-diffsr"]
_TEXT = """
# {name}

Enlarges pictures four times, and to other sizes; made with [samdiffsr](https://github.com/samdiffsr/samdiffsr).

```sh
pip install samdiffsr
samdiffsr upscale photo.jpg -o large/ -m {repo}
```
"""


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    reports: Sequence[str | Path] = (),
    licence: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a pipeline folder to the Hub, in one commit; the repository is made if need be.

    Only configuration, safetensors, `pipeline.py` and the card leave this machine. The card is the folder's README.md, else
    the one that the repository has, else a new one; its text is kept, and its YAML header is completed. The token is the one
    that `hf auth login` stored.

    Args:
        folder: a folder that `samdiffsr train` or `save_pretrained` wrote.
        repo: `user/name`.
        reports: each a report.json that `samdiffsr evaluate` wrote about this folder: its figures go into the card.
        licence: as the Hub abbreviates it, such as "mit"; None leaves what the card says.
        revision: a branch, made if need be; None is the main one.
        private: of a new repository; None is as the account has it.
        create_pr: open a pull request instead.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: no pipeline in the folder; no network, no permission, or whatever else the Hub refuses.
        ConfigError: a report that is none, or one about other weights than these.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"'{folder}' is no pipeline: it has no model_index.json.")
    check_repository(repo)
    results = [result for report in reports for result in _results(Path(report), folder)]
    local = folder / CARD
    text = local.read_text(encoding="utf-8") if local.is_file() else read_card(repo, revision)
    card = _card(text, repo, results, licence)
    files: dict[str, bytes | Path] = {
        path.relative_to(folder).as_posix(): path
        for pattern in (*FILES, "pipeline.py")
        for path in sorted(folder.rglob(pattern))
    }
    return upload(files | {CARD: str(card).encode()}, repo, revision=revision, private=private, create_pr=create_pr)


def _card(text: str | None, repo: str, results: "list[EvalResult]", licence: str | None) -> "ModelCard":
    """A card with a complete header; the text stays as it is."""
    from huggingface_hub import ModelCard

    name = repo.rpartition("/")[2]
    card = ModelCard(_TEXT.format(name=name, repo=repo) if text is None else text)
    data: Any = card.data
    data.library_name, data.pipeline_tag = data.library_name or "diffusers", data.pipeline_tag or "image-to-image"
    data.tags = list(dict.fromkeys([*(data.tags or []), *_TAGS]))
    data.license = licence or data.license
    if results:
        data.model_name, data.eval_results = data.model_name or name, results
    return card


def _results(path: Path, folder: Path) -> "list[EvalResult]":
    """The mean figures of a report about the model in `folder`."""
    from huggingface_hub import EvalResult

    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        figures, methods = report["figures"], report["setup"]["methods"]
        labels = [label for label, record in methods.items() if record.get("sha256") == digest_of_model(folder)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"'{path}' is no report.json of samdiffsr evaluate; give one that compares images."
        ) from error
    if not labels:
        raise ConfigError(f"'{path}' has no figures of the weights in '{folder}'; evaluate that folder with -m.")
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="super-resolution x4",
            dataset_type=figures["title"],
            dataset_name=figures["title"],
            metric_type=name,
            metric_name=f"{name} ({label.rpartition('@')[2]})" if "=" in label else name,
            metric_value=value,
            metric_args={"protocol": figures["protocols"][name]},
        )
        for method in figures["methods"]
        if (label := method["method"]) in labels
        for name, value in method["mean"].items()
    ]
