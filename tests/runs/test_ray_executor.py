"""The Ray executor: the same bytes as in this process, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from run_data import colour_model, part_digests, write_pictures
from torchpeek.runs import api

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray and its packages give warnings of their own

COUNT = 48


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    paths = os.pathsep.join(path for path in ("tests", "src") for path in [str(Path(__file__).parents[2] / path)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def _workers() -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if b"ray::MapWorker" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for the workers in /proc")
def test_bit_equal_although_a_worker_is_killed(tmp_path: Path, monkeypatch, cluster: None) -> None:
    monkeypatch.setattr(api, "measured_batches", lambda *_, **__: (4, 1))
    write_pictures(tmp_path / "data", COUNT)
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not list((tmp_path / "ray").glob("parts/*/*/part.json")):
            time.sleep(0.01)
        for process in _workers()[:1]:
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    done = []
    api.run(
        colour_model(), tmp_path / "data", tmp_path / "ray", methods=["gradcam"], executor="ray", workers=2,
        report=lambda progress: done.append(progress.done + progress.skipped),
    )  # fmt: skip
    killer.join()
    assert killed
    assert done[-1] == COUNT
    api.run(colour_model(), tmp_path / "data", tmp_path / "local", methods=["gradcam"], workers=0)
    assert part_digests(tmp_path / "ray") == part_digests(tmp_path / "local")
    api.run(colour_model(), None, tmp_path / "ray", methods=["gradcam"], executor="ray", workers=2)  # nothing to do
