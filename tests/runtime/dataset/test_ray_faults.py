"""Workers and nodes of a Ray cluster that die while a data set is encoded."""

import json
from pathlib import Path

import pytest

from fixtures.program import clip, run_process, run_python, save

pytest.importorskip("fsspec")
pytest.importorskip("ray")

# A head node that only drives, and two nodes with one worker each.
SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from wfvae.runtime.dataset.job import encode_dataset

bundle, videos, out, victim, result = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
reports = []
execution = {"provider": "cpu", "threads": 1}
options = {"engine": "ray", "workers": 2, "shard_size": 1, "execution": execution}
job = threading.Thread(target=lambda: reports.append(encode_dataset(bundle, videos, out, **options)))
job.start()
while job.is_alive() and not list(Path(out).glob("*.tar")):
    time.sleep(0.02)
before = len(list(Path(out).glob("*.tar")))
if victim == "node":
    cluster.remove_node(nodes[0], allow_graceful=False)
else:
    titles = {p: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    workers = [p for p, title in titles.items() if title.startswith("ray::") and "_RayWorker" in title]
    workers[0].kill()
job.join()
found = {"before": before, "samples": reports[0].samples, "failures": len(reports[0].failures)}
Path(result).write_text(json.dumps(found))  # Ray writes to standard output
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["node", "worker"])
def test_killed_node_or_worker_of_a_cluster_costs_no_sample(
    victim: str, bundle: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(12):
        save(videos / f"{number:02d}.mp4", clip(9, seed=number))
    out = tmp_path / "out"
    run_python(SCRIPT, bundle, videos, out, victim, tmp_path / "result.json")
    report = json.loads((tmp_path / "result.json").read_text())
    assert 0 < report["before"] < 12
    assert (report["samples"], report["failures"]) == (12, 0)
    code, _, _ = run_process("encode-dataset", bundle, videos, tmp_path / "alone", "--shard-size", 1)
    assert code == 0
    for shard in sorted((tmp_path / "alone").glob("*.tar")):
        assert (out / shard.name).read_bytes() == shard.read_bytes()
