"""The same work over a Ray cluster of two nodes, started here: the same files, byte for byte."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from samdiffsr import SamDiffSRError
from samdiffsr.distributed import cluster, cluster_map

ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file


@pytest.fixture(scope="module")
def two_nodes():
    """Two nodes of one core each; the tests join them as a user's command would."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": memory},
    )
    nodes.add_node(num_cpus=2, object_store_memory=memory)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def make_square():
    """Items wait for each other: the first is not done before a worker of the other node has begun one too."""

    def square(item):
        number, meeting = item
        if number == 3:
            raise SamDiffSRError("three is refused.")
        node = ray.get_runtime_context().get_node_id()
        (meeting / node).touch()
        until = time.monotonic() + 60
        while len(list(meeting.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        return number * number, node

    return square


def test_every_item_once_on_both_nodes_and_an_error_is_a_result(two_nodes, tmp_path):
    with cluster(two_nodes):
        results = dict(cluster_map(make_square, [(number, tmp_path) for number in range(8)]))
    assert str(results.pop(3)) == "three is refused."
    assert {number: value for number, (value, _) in results.items()} == {n: n * n for n in range(8) if n != 3}
    assert len({node for _, node in results.values()}) == 2


def test_no_items_are_no_work(two_nodes):
    assert list(cluster_map(make_square, [])) == []


def test_gpus_that_are_not_there_are_an_error(two_nodes):
    with pytest.raises(SamDiffSRError, match="0 GPUs"):
        list(cluster_map(make_square, [1], gpus=1))


def test_no_cluster_is_one_sentence(tmp_path: Path):
    code = (
        "from samdiffsr.distributed import cluster\nfrom samdiffsr import SamDiffSRError\n"
        "try:\n    with cluster('127.0.0.1:9'): pass\nexcept SamDiffSRError as error: print('told:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.startswith("told: there is no Ray cluster at '127.0.0.1:9'")
