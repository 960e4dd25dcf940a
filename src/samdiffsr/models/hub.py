"""Models of the Hugging Face Hub: `user/repo` or `user/repo@revision` becomes a folder on this machine."""

import re
from importlib import import_module, util
from pathlib import Path

from samdiffsr.errors import CheckpointError

FILES = ("*.json", "*.safetensors")
"""All that is fetched: neither code nor pickles."""

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def is_hub_name(name: str) -> bool:
    """Whether `name` is `user/repo` or `user/repo@revision`, and no path: nothing here is called `user`.

    So a mistyped path into a folder that exists is never asked of the network.
    """
    return _NAME.fullmatch(name) is not None and not Path(name.partition("/")[0]).exists()


def fetch(name: str) -> Path:
    """Download a model, or take the copy that an earlier download left; without network an earlier copy serves.

    The copy lies in the Hub's own cache (HF_HOME); a token is the one that `hf auth login` stored.

    Args:
        name: `user/repo`, or `user/repo@revision` with a branch, tag or commit.

    Raises:
        CheckpointError: no such model or revision, no permission, no network and no copy, or no pipeline in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"'{name}' is no name of a model on the Hub; write user/repo or user/repo@revision.")
    repo, revision = match.groups()
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise CheckpointError(f"'{repo}' asks for your consent: accept it at huggingface.co, then log in.") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"'{repo}' on the Hub has no revision '{revision}'.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is neither a folder '{name}' here nor a model '{repo}' on the Hub; a private one needs a token."
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder '{name}' here, and the Hub cannot be reached to look for a model of that name."
        ) from error
    except (HfHubHTTPError, *_transport_errors(), OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"The model '{name}' could not be fetched from the Hub: {reason}") from error
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"'{name}' on the Hub is no pipeline: it has no model_index.json.")
    return folder


def _transport_errors() -> list[type[Exception]]:
    """The errors of a broken connection: huggingface-hub 2 uses httpx2, version 1 httpx."""
    return [import_module(name).HTTPError for name in ("httpx2", "httpx") if util.find_spec(name)]
