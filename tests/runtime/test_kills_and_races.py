"""Jobs that are killed at random moments, and races of two jobs for one destination.

WFVAE_KILLS and WFVAE_RACES set how many are tried, such as 100 and 50.
"""

import json
import os
from pathlib import Path

import pytest

from fixtures.program import clip, run_python, save
from wfvae.runtime import Bundle, encode_video

KILLS, RACES = (int(os.environ.get(name, "3")) for name in ("WFVAE_KILLS", "WFVAE_RACES"))

_DRIVER = """
import contextlib, io, json, os, random, shutil, signal, sys, time
from pathlib import Path
from wfvae.cli import main as cli
from wfvae.runtime.backends.session_cache import SessionCache, shared_sessions

folder, bundle, sources, kills, races, seed = Path(sys.argv[1]), *sys.argv[2:]
sources, kills, races, dice = json.loads(sources), int(kills), int(races), random.Random(seed)
KINDS = {
    "z.zarr": "encode", "z.npy": "encode", "z.safetensors": "encode",
    "out.mkv": "decode", "out.gif": "decode", "frames/": "decode", "again.mkv": "reconstruct",
}

def words(name, source, resume):
    verb = KINDS[name]
    given = sources[source]["latents" if verb == "decode" else "video"]
    options = [] if verb == "reconstruct" else ["--checkpoint-every", "0", *["--resume"] * resume]
    return [verb, bundle, given, f"{folder}/{name}", "--chunk", "1", "--threads", "1", *options]

class Child:
    "A job in a process of its own, which needs no start: modules and sessions are loaded."

    def __init__(self, name, source, resume, delay=0.0):
        reading, writing = os.pipe()
        self.process = os.fork()
        if not self.process:
            time.sleep(delay)
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main(words(name, source, resume))
            os.write(writing, err.getvalue().encode())
            os._exit(code)
        os.close(writing)
        self.reading = reading

    def end(self):
        with os.fdopen(self.reading) as pipe:
            text = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]), text

def results():
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

def clear():
    shutil.rmtree(folder)
    folder.mkdir()

shared_sessions(SessionCache(8)).__enter__()
for name in ("z.zarr", "out.mkv", "again.mkv"):
    assert cli.main(words(name, "a", False)) == 0
expected, seconds = {}, {}
for name in KINDS:
    for source in sources:
        clear()
        began = time.perf_counter()
        assert Child(name, source, False).end() == (0, "")
        seconds[name] = time.perf_counter() - began
        expected[name, source] = results()

counts = {"killed": 0, "ended before the kill": 0, "resumed": 0, "refused": 0, "one after the other": 0}
for number in range(kills):
    name, source, resume = dice.choice([*KINDS]), dice.choice([*sources]), dice.random() < 0.8
    clear()
    for _ in range(dice.choice([1, 1, 2, 3])):
        child = Child(name, source, resume)
        time.sleep(dice.uniform(0, seconds[name]))
        os.kill(child.process, signal.SIGKILL)
        code, text = child.end()
        assert code in (0, -signal.SIGKILL) and text == "", (number, name, code, text)
        counts["killed" if code else "ended before the kill"] += 1
    code, text = Child(name, source, resume).end()
    assert (code, text) == (0, ""), (number, name, resume, code, text)
    found, right = results(), expected[name, source]
    wrong = [key for key in {**found, **right} if found.get(key) != right.get(key)]
    assert not wrong, (number, name, source, resume, wrong)
    counts["resumed"] += 1

for number in range(races):
    name, resume = dice.choice([*KINDS]), [dice.random() < 0.5 for _ in range(2)]
    clear()
    delays = [0.0, dice.choice([0.0, dice.uniform(0, 1.2 * seconds[name])])]
    children = [Child(name, *job) for job in zip("ab", resume, delays)]
    ended = [child.end() for child in children]
    codes = [code for code, _ in ended]
    assert 0 in codes and set(codes) <= {0, 2}, (number, name, ended)
    for code, text in ended:
        refused = "another job is writing" in text and text.count("\\n") == 1
        assert text == "" if code == 0 else refused, (number, name, ended)
    right = [expected[name, source] for source, code in zip("ab", codes) if code == 0]
    assert results() in right, (number, name, resume, ended, sorted(results()))
    counts["refused" if 2 in codes else "one after the other"] += 1
print(json.dumps(counts))
"""


@pytest.mark.slow
def test_kills_and_races_leave_right_results_only(bundle: Path, model: Bundle, tmp_path: Path) -> None:
    sources = {}
    for seed, name in enumerate("ab"):
        video = save(tmp_path / f"{name}.mp4", clip(61, seed=seed))
        encode_video(model, video, tmp_path / f"{name}.zarr")
        sources[name] = {"video": str(video), "latents": str(tmp_path / f"{name}.zarr")}
    (tmp_path / "work").mkdir()
    arguments = (tmp_path / "work", bundle, json.dumps(sources), KILLS, RACES, "seed")
    counts = json.loads(run_python(_DRIVER, *arguments, patience=60 + 30 * (KILLS + RACES)).splitlines()[-1])
    assert counts["resumed"] == KILLS
    assert counts["refused"] + counts["one after the other"] == RACES
    (tmp_path / "counts.json").write_text(json.dumps(counts))
