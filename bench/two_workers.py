"""Pictures a second of two workers: `two_workers.py local|ray PICTURES OUT`. Prints the rate and the start as JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

import torch
from torchvision.models import mobilenet_v2

import torchpeek as tp
from torchpeek.runs import api

BATCH, BATCHES = 16, 8  # shards of a few seconds, so that both workers have some


def loaded() -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(mobilenet_v2().eval(), spec="torchvision:mobilenet_v2", weights="random")


def work(data: str, out: str, shard: tuple[int, int] | None, times: list[tuple[float, int]], executor: str) -> None:
    api.measured_batches = lambda *_, **__: (BATCH, BATCHES)
    torch.set_num_threads(1)
    api.run(
        loaded(),
        data,
        out,
        methods=["gradcam"],
        layer="features",
        workers=2 if executor == "ray" else 0,
        shard=shard,
        executor=executor,
        report=lambda progress: times.append((time.time(), progress.done)),
    )


def main() -> None:
    executor, data, out = sys.argv[1:]
    started = time.time()
    with multiprocessing.Manager() as manager:
        if executor == "ray":
            times = [[]]
            work(data, out, None, times[0], "ray")
        else:
            times = [manager.list() for _ in range(2)]
            processes = [
                multiprocessing.get_context("spawn").Process(target=work, args=(data, out, (i, 2), times[i], "local"))
                for i in range(2)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        of_each = [list(each) for each in times if len(each) > 1]
    first = min(each[0][0] for each in of_each)
    last = max(each[-1][0] for each in of_each)
    # What was done before the first report is not counted, and its time is that of the start.
    done = sum(each[-1][1] - each[0][1] for each in of_each)
    print(json.dumps({"rate": done / (last - first), "start": first - started, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
