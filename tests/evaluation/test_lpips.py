"""LPIPS and the files it is made of: the published layouts with random weights, against the networks as torch modules."""

import numpy as np
import pytest
import torch
from torch import nn

from samdiffsr import SamDiffSRError
from samdiffsr.evaluation import downloads
from samdiffsr.evaluation.benchmark import load_metrics
from samdiffsr.evaluation.downloads import PUBLISHED, load_published, published_file
from samdiffsr.evaluation.lpips import LPIPS, TRUNKS
from support import publish

# --- the distance ----------------------------------------------------------------------------------------------------

# The feature parts of torchvision's alexnet and vgg16 (arXiv 1404.5997, 1409.1556); the index is the published key.
CONV = {  # channels before and after, kernel, stride, padding
    "alex": {
        0: (3, 64, 11, 4, 2),
        3: (64, 192, 5, 1, 2),
        6: (192, 384, 3, 1, 1),
        8: (384, 256, 3, 1, 1),
        10: (256, 256, 3, 1, 1),
    },
    "vgg": {
        index: (before, after, 3, 1, 1)
        for index, before, after in zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
            (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
            (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
            strict=True,
        )
    },
}
POOL = {"alex": {2: (3, 2), 5: (3, 2), 12: (3, 2)}, "vgg": dict.fromkeys((4, 9, 16, 23, 30), (2, 2))}
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # ReLUs that LPIPS looks at
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def features(trunk):
    """`features` of the published network, as its authors build it, with random downloads."""
    layers = []
    for index in range(max(POOL[trunk]) + 1):
        if index in CONV[trunk]:
            layers.append(nn.Conv2d(*CONV[trunk][index]))
        else:
            layers.append(nn.MaxPool2d(*POOL[trunk][index]) if index in POOL[trunk] else nn.ReLU())
    return nn.Sequential(*layers)


@pytest.fixture(params=["alex", "vgg"])
def published(request, tmp_path, monkeypatch):
    """(name, network, heads) with files in the published layout in the folder."""
    trunk, generator = request.param, torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = features(trunk)
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    heads = {
        f"lin{number}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for number, channels in enumerate(HEADS[trunk])
    }
    publish(monkeypatch, tmp_path / TRUNKS[trunk].weights, state)
    publish(monkeypatch, tmp_path / TRUNKS[trunk].heads, heads)
    return trunk, network, list(heads.values())


def images():
    generator = np.random.default_rng(0)
    return (generator.integers(0, 256, (37, 45, 3), dtype=np.uint8) for _ in range(2))


@torch.no_grad()
def reference(trunk, network, heads, a, b):
    """LPIPS 0.1 written out: scaling layer, taps, unit length, heads, mean over positions, sum over layers."""
    total = 0
    pair = []
    for image in (a, b):
        x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        x = torch.stack([(x[:, c] - (-0.030, -0.088, -0.188)[c]) / (0.458, 0.448, 0.450)[c] for c in range(3)], dim=1)
        taps = []
        for index in range(TAPS[trunk][-1] + 1):
            x = network[index](x)
            if index in TAPS[trunk]:
                taps.append(x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10))
        pair.append(taps)
    for x, y, head in zip(*pair, heads, strict=True):
        total += float(((x - y) ** 2 * head).sum(1).mean())
    return total


def test_lpips_is_the_published_architecture(published, tmp_path):
    trunk, network, heads = published
    a, b = images()
    lpips = LPIPS(trunk, tmp_path)
    assert lpips(a, b) == pytest.approx(reference(trunk, network, heads, a, b), rel=1e-5)
    assert lpips(a, b) > 0.01
    assert lpips(a, a) == 0


def test_lpips_among_the_metrics(published, tmp_path):
    trunk, *_ = published
    a, b = images()
    metrics = load_metrics([f"lpips-{trunk}"], tmp_path)
    assert metrics.distances[f"lpips-{trunk}"](a, b) == LPIPS(trunk, tmp_path)(a, b)
    files = (TRUNKS[trunk].weights, TRUNKS[trunk].heads)
    assert metrics.weights == {name: downloads.sha256(tmp_path / name) for name in files}


def test_lpips_refuses_what_it_cannot_compare(published, tmp_path):
    trunk, *_ = published
    a, b = images()
    lpips, least = LPIPS(trunk, tmp_path), TRUNKS[trunk].least
    assert lpips(a[:least, :least], b[:least, :least]) > 0
    with pytest.raises(SamDiffSRError, match=f"{least}x{least}"):
        lpips(a[: least - 1], b[: least - 1])
    with pytest.raises(SamDiffSRError, match="one size"):
        lpips(a[1:], b)


def test_an_unknown_trunk(tmp_path):
    with pytest.raises(SamDiffSRError, match="'alex', 'vgg'"):
        LPIPS("squeeze", tmp_path)


# --- the files -------------------------------------------------------------------------------------------------------


def test_digests_begin_as_the_published_names_say():
    for name, file in PUBLISHED.items():
        assert file.name == name and len(file.sha256) == 64
        assert file.url.startswith("https://") and file.url.endswith(f"/{name}")
        if "-" in name:
            assert file.sha256.startswith(name.removesuffix(".pth").rpartition("-")[2])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A published file that is not in the folder yet."""
    (tmp_path / "server").mkdir()
    publish(monkeypatch, tmp_path / "server/alex.pth", {"lin0.model.1.weight": torch.ones(1)})
    return PUBLISHED["alex.pth"]


def test_a_missing_file_is_downloaded_once(elsewhere, tmp_path):
    folder = tmp_path / "new" / "cache"
    assert load_published("alex.pth", folder)["lin0.model.1.weight"] == 1
    (tmp_path / "server/alex.pth").unlink()
    assert published_file("alex.pth", folder) == folder / "alex.pth"
    assert [file.name for file in folder.iterdir()] == ["alex.pth"]


def test_without_network_the_sentence_names_file_url_and_option(elsewhere, tmp_path):
    (tmp_path / "server/alex.pth").unlink()
    with pytest.raises(SamDiffSRError, match=r"alex\.pth .* cannot be downloaded .*file:///.*--weights-dir\.$"):
        published_file("alex.pth", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_of_another_content_is_thrown_away(elsewhere, tmp_path):
    (tmp_path / "server/alex.pth").write_bytes(b"something else")
    with pytest.raises(SamDiffSRError, match="invalid hash"):
        published_file("alex.pth", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_of_another_content_is_refused(elsewhere, tmp_path):
    (tmp_path / "alex.pth").write_bytes(b"something else")
    with pytest.raises(SamDiffSRError, match=elsewhere.sha256):
        published_file("alex.pth", tmp_path)


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.default_folder() == tmp_path / "samdiffsr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert downloads.default_folder().parts[-2:] == (".cache", "samdiffsr")
