"""The same work over a Ray cluster of two nodes, started here: the same files, byte for byte."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from samdiffsr import SamDiffSRError
from samdiffsr.cli import main
from samdiffsr.workers import cluster, cluster_map, on_cluster
from support import EXAMPLES, contents

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(600)  # a worker process takes seconds to start, and on a busy machine many
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file


@pytest.fixture(scope="module")
def two_nodes():
    """Two nodes of one core each; the tests join them as a user's command would."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory},
    )
    nodes.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def square(item):
    """Items wait for each other: the first is not done before a worker of the other node has begun one too."""
    number, meeting = item
    if number == 3:
        raise SamDiffSRError("three is refused.")
    node = ray.get_runtime_context().get_node_id()
    (meeting / node).touch()
    until = time.monotonic() + 60
    while len(list(meeting.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return number * number, node


def test_every_item_once_on_both_nodes_and_an_error_is_a_result(two_nodes, tmp_path):
    with cluster(two_nodes):
        results = dict(cluster_map(square, [(number, tmp_path) for number in range(8)]))
    assert str(results.pop(3)) == "three is refused."
    assert {number: value for number, (value, _) in results.items()} == {n: n * n for n in range(8) if n != 3}
    assert len({node for _, node in results.values()}) == 2


def test_no_items_are_no_work(two_nodes):
    assert list(cluster_map(square, [])) == []


def test_gpus_that_are_not_there_are_an_error(two_nodes):
    with pytest.raises(SamDiffSRError, match="0 GPUs"):
        list(cluster_map(square, [1], gpus=1))


def test_no_cluster_is_one_sentence(tmp_path: Path):
    code = (
        "from samdiffsr.workers import cluster\nfrom samdiffsr import SamDiffSRError\n"
        "try:\n    with cluster('127.0.0.1:9'): pass\nexcept SamDiffSRError as error: print('told:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.startswith("told: there is no Ray cluster at '127.0.0.1:9'")


def test_the_first_error_ends_an_ordered_run(two_nodes, tmp_path):
    results = on_cluster(two_nodes, square, [(number, tmp_path) for number in range(5)])
    assert [next(results)[0] for _ in range(3)] == [0, 1, 4]
    with pytest.raises(SamDiffSRError, match="three is refused"):
        next(results)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three photographs; the tests run beside them, and give relative paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hr").mkdir()
    for number, name in enumerate(["cat", "coffee", "astronaut"]):
        with Image.open(EXAMPLES / f"{name}.png") as picture:
            picture.crop((10, 20, 42 + number, 60)).save(tmp_path / "hr" / f"{name}.png")
    return tmp_path


def run(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code


def test_masks_and_preparation_are_the_same_bytes(two_nodes, photos):
    masks = ("masks", "-i", "hr", "--segmenter", "felzenszwalb", "--set", "min_size=20")
    run(*masks, "-o", "masks")
    run(*masks, "-o", "masks2", "--cluster", two_nodes)
    assert contents(photos / "masks2") == contents(photos / "masks")
    prepare = ("prepare", "-i", "hr", "--masks", "masks", "--images-per-shard", "1")
    run(*prepare, "-o", "data")
    run(*prepare, "-o", "data2", "--cluster", two_nodes)
    assert contents(photos / "data2") == contents(photos / "data")
    assert len(list((photos / "data2").glob("*.tar"))) == 3


def test_a_cluster_goes_on_where_one_machine_was_stopped(two_nodes, photos):
    masks = ("masks", "-i", "hr", "-o", "masks", "--segmenter", "felzenszwalb", "--set", "min_size=20")
    run(*masks, "--shard", "1/2")
    kept = {file: file.stat().st_mtime_ns for file in (photos / "masks").glob("*.json")}
    assert 0 < len(kept) < 3
    run(*masks, "--cluster", two_nodes)
    assert len(list((photos / "masks").glob("*.json"))) == 3
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_upscaling_is_the_same_bytes_and_tells_the_same(two_nodes, photos, capfd):
    (photos / "hr" / "coffee.png").write_bytes(b"broken")
    upscale = ("upscale", "-i", "hr", "--steps", "1")
    run(*upscale, "-o", "one", code=1)
    here = capfd.readouterr().err
    run(*upscale, "-o", "two", "--cluster", two_nodes, code=1)
    spoken = capfd.readouterr().err.replace(f"{photos}/", "").splitlines(keepends=True)
    there = "".join(line for line in spoken if not line.startswith("[20"))  # Ray's own lines start with the date
    assert contents(photos / "two") == contents(photos / "one")
    assert there.endswith(here) and here.endswith("2 upscaled, 0 skipped, 1 failed.\n")  # Ray may have spoken before


def test_a_list_of_uris_to_a_uri(two_nodes, photos, tiny_pipe_dir, capfd):
    files = [photos / "hr" / f"{name}.png" for name in ("cat", "coffee", "astronaut")]
    (photos / "list").write_text("\n".join(["hr/cat.png", *(file.as_uri() for file in files[1:]), "file:///no.png"]))
    (photos / "two").mkdir()
    (photos / "two" / "coffee_x4.png").write_bytes(b"precious")
    line = ("upscale", "-m", str(tiny_pipe_dir))
    run(*line, "-i", "hr", "-o", "one")
    target = (photos / "two").as_uri()
    run(*line, "--input-list", "list", "-o", target, "--skip-existing", "--cluster", two_nodes, code=1)
    told = "Error: 'file:///no.png' does not exist; check the name.\n2 upscaled, 1 skipped, 1 failed.\n"
    assert capfd.readouterr().err.endswith(told)
    assert contents(photos / "two") == contents(photos / "one") | {"coffee_x4.png": b"precious"}
