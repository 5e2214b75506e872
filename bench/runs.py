"""A run over a data set, beside a bare loop and the loops of other tools over the same pictures."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

import torchpeek as tp
from torchpeek.runs import api
from torchpeek.runs.decoding import decoded_batches
from torchpeek.runs.parts import write_part
from torchpeek.runs.run import open_run
from torchpeek.runs.run_folder import SAMPLES, created
from torchpeek.runs.samples import Sample, SampleList, write_samples
from torchpeek.runs.shards import Cut
from torchpeek.runs.sources import source_of
from torchpeek.runs.spec import Group, spec_of
from torchpeek.runs.storage import FolderStorage
from torchpeek.runs.tables import ERRORS, HEATMAPS, PREDICTED, table_bytes

BARE = "a bare loop: the same workers, batches and forward passes"
OURS, GRAD_CAM, TORCHCAM = "torchpeek run, gradcam", "grad-cam in a loop", "torchcam in a loop"
PICTURES, SIZE, BATCH = 2000, (500, 375), 16
WORKERS = 1  # on two cores: the other one computes
GOALS = {"speed": 0.9, "memory": 0.05, "again": 3.0, "again_million": 10.0, "open": 1.0, "ray": 0.1, "bytes": 250}


def measure_all(rounds: int, *, pictures: int = PICTURES) -> dict[str, Any]:
    """All that docs/scale.md speaks of."""
    with tempfile.TemporaryDirectory(prefix="torchpeek-bench-") as name:
        folder = Path(name)
        print("measuring: runs, writing pictures", file=sys.stderr)
        write_jpegs(folder / "pictures", pictures)
        results: dict[str, Any] = {"pictures": pictures, "speed": {}}
        for network in (mobilenet_v2, resnet18):
            print(f"measuring: runs, {network.__name__}", file=sys.stderr)
            results["speed"][network.__name__] = measure_speed(network, folder, max(1, rounds // 8))
        print("measuring: runs, memory, starts and storage", file=sys.stderr)
        results |= measure_starts(folder)
        results |= measure_memory(folder)
        results |= measure_ray(folder)
        return results


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = SIZE) -> None:
    """Pictures of smooth noise, of which a JPEG of 500 x 375 has some 60 kB, as a photograph has."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        small = torch.randint(0, 256, (size[1] // 4, size[0] // 4, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=90)


def loaded_network(network: Callable[[], nn.Module]) -> tp.LoadedModel:
    torch.manual_seed(0)
    return tp.LoadedModel(network().eval(), spec=f"torchvision:{network.__name__}", weights="random")


def batches(loaded: tp.LoadedModel, folder: Path, listed: Path) -> Iterator[Tensor]:
    """The decoded batches of all pictures, by the workers that a run has, too."""
    source = source_of(folder, None)
    count = write_samples(listed, source.samples())
    samples = SampleList(FolderStorage(listed.parent), listed.name)
    bounds = [(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    for batch in decoded_batches(samples, source, loaded, bounds, max_size=None, workers=WORKERS):
        yield batch.inputs[0][0]


def measure_speed(network: Callable[[], nn.Module], folder: Path, rounds: int) -> dict[str, Any]:
    """Pictures a second, and their ratio to a bare loop, the median over interleaved rounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
        from torchcam.methods import GradCAM as TorchcamGradCAM

    loaded, pictures = loaded_network(network), folder / "pictures"
    model = loaded.module
    layer = "layer4" if network is resnet18 else "features"
    target = model.get_submodule(layer)
    listed = folder / "listed.parquet"
    outs = iter(range(1000))

    def bare() -> None:
        with torch.inference_mode():
            for inputs in batches(loaded, pictures, listed):
                model(inputs)

    def torchpeek() -> None:
        out = folder / f"{network.__name__}-{next(outs)}"
        api.run(loaded, pictures, out, methods=["gradcam"], layer=layer, batch=BATCH, workers=WORKERS)

    def grad_cam() -> None:
        with GradCAM(model=model, target_layers=[target]) as extractor:
            for inputs in batches(loaded, pictures, listed):
                extractor(input_tensor=inputs, targets=None)

    def torchcam() -> None:
        with TorchcamGradCAM(model, target_layer=target) as extractor:
            for inputs in batches(loaded, pictures, listed):
                scores = model(inputs)
                extractor(scores.argmax(1).tolist(), scores)

    work = {BARE: bare, OURS: torchpeek, GRAD_CAM: grad_cam, TORCHCAM: torchcam}
    torch.set_num_threads(1)
    count = len(list(pictures.iterdir()))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in work if number % 2 == 0 else reversed(work):
            start = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: count / statistics.median(each) for name, each in seconds.items()}
    shares = {
        name: statistics.median(bare / mine for bare, mine in zip(seconds[BARE], each, strict=True))
        for name, each in seconds.items()
    }
    return {"rates": rates, "shares": shares, "rounds": rounds}


def measure_starts(folder: Path) -> dict[str, Any]:
    """Bytes of a map, and how long a finished run takes to start again and to open."""
    run = next(folder.glob("mobilenet_v2-*"))
    found = open_run(run)
    maps = int(found.sql("select count(*) from heatmaps").fetchall()[0][0])
    group = sum(
        file.stat().st_size
        for file in run.rglob("*")
        if file.name in ("maps.safetensors", "index.parquet", "part.json")
    )
    loaded = loaded_network(mobilenet_v2)
    results: dict[str, Any] = {"bytes": group / maps, "bytes_of_all": _size(run) / maps}
    for name, samples, shards in (("again", 10_000, 5), ("again_million", 1_000_000, 500)):
        out = folder / name
        made_up_run(out, loaded, folder / "pictures", samples, shards)
        results[name] = _seconds(lambda out=out: api.run(loaded, None, out, methods=["gradcam"], workers=0))
        results[f"{name}_open"] = _seconds(
            lambda out=out: open_run(out).sql("select count(*) from heatmaps").fetchall()
        )
    return results


def made_up_run(out: Path, loaded: tp.LoadedModel, data: Path, count: int, shards: int) -> None:
    """A finished run of so many samples that do not exist, with tables of the right size and no maps."""
    storage = FolderStorage(out)
    keys = (Sample(f"{n // 1000:06d}/{n:09d}.jpg") for n in range(count))
    out.mkdir()
    write_samples(out / SAMPLES, keys)
    spec, cut = spec_of(loaded, max_size=None, seed=0), Cut(count, 16, -(-count // shards // 16))
    folder = created(storage, spec, source_of(data, None).description, cut, [], "", "")
    group = Group({"gradcam": {}}, predictions=True)
    folder.add(group)
    for shard in cut.shards():
        rows = [
            {
                "row": row, "method": "gradcam", "layer": "features", "target": 0, "label": row % 1000, "score": 1.0,
                "tensor": "gradcam/features/7x7", "place": row - shard.start, "exponent": 0, "centre_x": 0.5,
                "centre_y": 0.5, "spread": 0.3, "border": 0.3, "peak_x": 0.5, "peak_y": 0.5, "entropy": 0.9,
            }
            for row in range(shard.start, shard.stop)
        ]  # fmt: skip
        predicted = [
            {
                "row": row, "digest": b"0" * 32, "width": 500, "height": 375, "box": [0.0, 0.0, 500.0, 375.0],
                "top_classes": [row % 1000], "top_probabilities": [0.5],
            }
            for row in range(shard.start, shard.stop)
        ]  # fmt: skip
        files = {
            "index.parquet": table_bytes(rows, HEATMAPS),
            "predicted.parquet": table_bytes(predicted, PREDICTED),
            "errors.parquet": table_bytes([], ERRORS),
        }
        write_part(storage, shard.number, group.name, files, {"heatmaps": len(rows), "errors": 0})


# Runs in a process of its own, whose peak of memory is that of the run.
_MEMORY = """
import json, sys
from pathlib import Path
import torch
from torch import nn
import torchpeek as tp
from torchpeek.runs import api
torch.set_num_threads(1)
torch.manual_seed(0)
layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
loaded = tp.LoadedModel(nn.Sequential(*layers).eval(), tp.Preprocess(resize=64, crop=(64, 64)), spec="small")
peaks = []
note = lambda progress: peaks.append(progress.memory)
api.run(loaded, sys.argv[1], sys.argv[2], methods=["gradcam"], batch=16, workers=1, report=note)
print(peaks[-1])
"""


def measure_memory(folder: Path) -> dict[str, Any]:
    """The peak of memory over 1,000 and 10,000 small pictures."""
    write_jpegs(folder / "small", 10_000, (96, 72))
    first = folder / "first"
    first.mkdir()
    for file in sorted((folder / "small").iterdir())[:1000]:
        (first / file.name).hardlink_to(file)
    peaks = {}
    for name, data in (("memory_1000", first), ("memory_10000", folder / "small")):
        command = [sys.executable, "-c", _MEMORY, str(data), str(folder / name)]
        peaks[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    return peaks


def measure_ray(folder: Path) -> dict[str, Any]:
    """Pictures a second of two workers of Ray, after their start, and of two local processes with a shard each."""
    try:
        import ray  # noqa: F401
    except ImportError:
        return {}
    code = Path(__file__).with_name("two_workers.py")
    found = {}
    for executor in ("local", "ray"):
        command = [sys.executable, str(code), executor, str(folder / "pictures"), str(folder / f"two-{executor}")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[f"two_{executor}"] = json.loads(output.splitlines()[-1])
    return found


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def markdown(results: dict[str, Any]) -> str:
    """The part of the page."""
    lines = [
        "## A run over a data set",
        "",
        f"gradcam over {results['pictures']:,} JPEGs of 500 x 375: one process computes in one thread. "
        "Another one decodes. Pictures a second, and the share of a bare loop, the median over interleaved rounds.",
        "",
        "| | " + " | ".join(f"{name} | share" for name in results["speed"]) + " | goal |",
        "|---|" + "---:|---:|" * len(results["speed"]) + "---:|",
    ]
    for name in (BARE, OURS, GRAD_CAM, TORCHCAM):
        cells = [f"{each['rates'][name]:.1f} | {each['shares'][name]:.2f}" for each in results["speed"].values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {GOALS['speed'] if name == OURS else ''} |")
    growth = results["memory_10000"] / results["memory_1000"] - 1
    lines += [
        "",
        "| | | goal |",
        "|---|---:|---:|",
        f"| a finished run of 10,000 starts again | {results['again']:.2f} s | {GOALS['again']:.0f} s |",
        f"| a finished run of 1,000,000 (made up) starts again | {results['again_million']:.2f} s | "
        f"{GOALS['again_million']:.0f} s |",
        f"| the run of 1,000,000 opens and counts its maps | {results['again_million_open']:.2f} s | "
        f"{GOALS['open']:.0f} s |",
        f"| memory, 10,000 pictures against 1,000 | {growth:+.1%} | {GOALS['memory']:.0%} |",
        f"| bytes of a map of 7 x 7, with its row of the index | {results['bytes']:.0f} | {GOALS['bytes']} |",
    ]
    if "two_ray" in results:
        share = results["two_ray"]["rate"] / results["two_local"]["rate"]
        lines.append(
            f"| two workers of Ray against two local ones, after the start | {share:.2f} | {1 - GOALS['ray']} |"
        )
        lines.append(f"| start of Ray and its workers | {results['two_ray']['start']:.1f} s | |")
    return "\n".join(lines) + "\n"
