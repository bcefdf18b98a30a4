"""Workers and nodes of a Ray cluster that die while a data set is encoded."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from fixtures.program import clip, run_process, run_python, save

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("fsspec") is None, reason="needs the extra ray"
)

# A head node that only drives, and two nodes with one worker each.
SCRIPT = """
import contextlib, json, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from wfvae.runtime.dataset.job import encode_dataset

bundle, videos, out, result = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
reports = []
execution = {"provider": "cpu", "threads": 1}
options = {"engine": "ray", "workers": 2, "shard_size": 1, "execution": execution}
job = threading.Thread(target=lambda: reports.append(encode_dataset(bundle, videos, out, **options)))

def is_worker(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and "_RayWorker" in title

def shards(least):
    while job.is_alive() and len(list(Path(out).glob("*.tar"))) < least:
        time.sleep(0.02)
    return len(list(Path(out).glob("*.tar")))

job.start()
before = [shards(1)]
workers = [process for process in psutil.Process().children(recursive=True) if is_worker(process)]
workers[0].kill()
before.append(shards(before[0] + 2))
cluster.remove_node(nodes[0], allow_graceful=False)
job.join()
found = {"before": before, "samples": reports[0].samples, "failures": len(reports[0].failures)}
Path(result).write_text(json.dumps(found))  # Ray writes to standard output
ray.shutdown()
cluster.shutdown()
"""


@needs_ray
@pytest.mark.slow
def test_killed_worker_and_then_node_of_a_cluster_cost_no_sample(bundle: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(16):
        save(videos / f"{number:02d}.mp4", clip(9, seed=number))
    out = tmp_path / "out"
    run_python(SCRIPT, bundle, videos, out, tmp_path / "result.json")
    report = json.loads((tmp_path / "result.json").read_text())
    assert 0 < report["before"][0] < report["before"][1] < 16
    assert (report["samples"], report["failures"]) == (16, 0)
    code, _, _ = run_process("encode-dataset", bundle, videos, tmp_path / "alone", "--shard-size", 1)
    assert code == 0
    for shard in sorted((tmp_path / "alone").glob("*.tar")):
        assert (out / shard.name).read_bytes() == shard.read_bytes()
