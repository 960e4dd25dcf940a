"""The published weight files of LPIPS, DISTS and FID: where they lie, where they come from, and whether they are right."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samdiffsr.errors import CheckpointError


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    name: str
    url: str
    sha256: str


# The digests of the three large files are those quoted by several independent projects, and begin with the digits in the
# published names. (That of the Inception is quoted for torch-fidelity's release of the same file under another name.)
# Those of the small ones were computed from the packages lpips 0.1.4 and DISTS-pytorch 0.1.
PUBLISHED = {
    file.name: file
    for file in (
        Published(
            "alexnet-owt-7be5be79.pth",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
        Published(
            "vgg16-397923af.pth",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
        Published(
            "alex.pth",
            "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
            "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        ),
        Published(
            "vgg.pth",
            "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
            "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        ),
        Published(
            "weights.pt",
            "https://raw.githubusercontent.com/dingkeyan93/DISTS/master/DISTS_pytorch/weights.pt",
            "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        ),
        Published(
            "pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
    )
}


def default_folder() -> Path:
    """Where downloads go unless another folder is given: samdiffsr/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samdiffsr"


def published_file(name: str, folder: Path) -> Path:
    """The published file of that name in `folder`, downloaded into it if it is not there.

    Raises:
        CheckpointError: it is missing and cannot be downloaded, or its content is not the published one.
    """
    published, file = PUBLISHED[name], folder / name
    if not file.is_file():
        _download(published, file)
    if (found := sha256(file)) != published.sha256:
        raise CheckpointError(
            f"'{file}' has the SHA-256 {found}, but the published file has {published.sha256}; delete it and get it again "
            f"from {published.url}."
        )
    return file


def load_published(name: str, folder: Path) -> dict[str, Tensor]:
    """The tensors of a published file, on the CPU; errors as `published_file`."""
    return torch.load(published_file(name, folder), map_location="cpu", weights_only=True)


def sha256(file: Path) -> str:
    """Hex digest of a file's content; CheckpointError if it cannot be read."""
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror or error}.") from None


def _download(published: Published, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(  # to a temporary name in the same folder, moved when the digest is right
            published.url, str(file), hash_prefix=published.sha256, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: another digest
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise CheckpointError(
            f"The weights {published.name} are not in '{file.parent}' and cannot be downloaded ({reason}); get them from "
            f"{published.url} and give their folder as --weights-dir."
        ) from None
