"""Models of the Hugging Face Hub: `user/repo` or `user/repo@revision` becomes a folder on this machine, and files a commit."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def check_repository(repo: str) -> None:
    """CheckpointError unless `repo` is `user/repo`."""
    match = _NAME.fullmatch(repo)
    if match is None or match[2] is not None:
        raise CheckpointError(f"'{repo}' is no name of a repository on the Hub; write user/repo.")


def read_card(repo: str, revision: str | None) -> str | None:
    """The README.md that a repository has at a revision; None where repository, revision or file do not exist.

    Raises:
        CheckpointError: no network, or no permission.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    with _explained(repo):
        try:
            return Path(hf_hub_download(repo, "README.md", revision=revision)).read_text(encoding="utf-8")
        except LocalEntryNotFoundError as error:  # one of EntryNotFoundError too, but for want of a network
            raise CheckpointError(f"The Hub cannot be reached to write to '{repo}'.") from error
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            return None


def upload(
    files: Mapping[str, bytes | Path], repo: str, *, revision: str | None, private: bool | None, create_pr: bool
) -> str:
    """Write files to a repository of the Hub in one commit; repository and branch are made if need be.

    Args:
        files: path in the repository -> content, or where it lies.
        revision: a branch; None is the main one.
        private: of a new repository; None is as the account has it.
        create_pr: open a pull request instead.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: no network, no permission, or whatever else the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repository(repo)
    api = HfApi()
    with _explained(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        message = "Upload a model by samdiffsr"
        return api.create_commit(
            repo, operations, commit_message=message, revision=revision, create_pr=create_pr
        ).commit_url


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """What the Hub refuses becomes one sentence."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, ValueError) as error:  # ValueError: of the YAML header of README.md
        response = getattr(error, "response", None)
        if response is not None and response.status_code in (401, 403):
            raise CheckpointError(
                f"The Hub does not let you write to '{repo}': log in with `hf auth login`, with a token that may write."
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"The Hub refused to write to '{repo}': {reason}") from error
    except (*_transport_errors(), OSError) as error:
        raise CheckpointError(f"The Hub cannot be reached to write to '{repo}'.") from error


def _transport_errors() -> list[type[Exception]]:
    """The errors of a broken connection: huggingface-hub 2 uses httpx2, version 1 httpx.

    RuntimeError is httpx's for a client that is closed, as version 1.3 leaves it where nobody answers.
    """
    return [RuntimeError, *(import_module(name).HTTPError for name in ("httpx2", "httpx") if util.find_spec(name))]
