"""Decoding: batches of samples are read and preprocessed in worker processes, while the model runs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from torchpeek.errors import PictureError
from torchpeek.metrics import regions_of
from torchpeek.models import LoadedModel
from torchpeek.picture import Geometry
from torchpeek.runs.samples import Sample, SampleList
from torchpeek.runs.sources.source import Source
from torchpeek.store import read_mask
from torchpeek.system_errors import is_from_outside


@dataclass(frozen=True)
class Failure:
    """Why a sample could not be used.

    Args:
        row: The number of the sample in its run.
        stage: What failed: "read", "decode" or "explain".
        error: The class of the exception.
        message: Its text.
    """

    row: int
    stage: str
    error: str
    message: str


@dataclass(frozen=True)
class DecodedSample:
    """What is known of a sample that was read, besides its tensor."""

    row: int
    digest: bytes  # SHA-256 of the file's bytes
    size: tuple[int, int]  # (width, height) of the upright picture, in pixels
    geometry: Geometry  # in pixels of the original picture
    label: int | None
    in_boxes: Tensor | None  # (H, W), bool: where the boxes are in the input
    in_mask: Tensor | None  # (H, W), bool: where the mask is


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """A batch of samples: those of one shape are one tensor.

    Args:
        inputs: (n, C, H, W) for each shape of input, with its samples, n of them.
        failures: The samples that could not be read.
    """

    inputs: list[tuple[Tensor, list[DecodedSample]]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class _Stand(nn.Module):
    """Stands for the model in worker processes, which need its dtype alone."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)


def reader_of(loaded: LoadedModel) -> LoadedModel:
    """A model without its network, which reads pictures as `loaded` does, on the CPU."""
    return replace(loaded, module=_Stand(loaded.dtype), preprocess=loaded.preprocess)


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[DecodedBatch]):
    """The batches of a shard. Reading one decodes its samples."""

    samples: Sequence[Sample]  # of the batches, and not the list of the run: no open file may get into a worker
    source: Source
    reader: LoadedModel
    bounds: Sequence[tuple[int, int]]
    max_size: int | None

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> DecodedBatch:
        start, stop = self.bounds[index]
        first = self.bounds[0][0]
        tensors: dict[tuple[int, ...], tuple[list[Tensor], list[DecodedSample]]] = {}
        failures = []
        for row, sample in enumerate(self.samples[start - first : stop - first], start):
            stage = "read"
            try:
                data = self.source.read(sample)
                stage = "decode"
                tensor, decoded = self._decoded(row, sample, data)
            except Exception as error:
                if is_from_outside(error):
                    raise
                failures.append(failure(row, stage, error))
                continue
            of_shape = tensors.setdefault(tuple(tensor.shape), ([], []))
            of_shape[0].append(tensor)
            of_shape[1].append(decoded)
        return DecodedBatch([(torch.cat(each), decoded) for each, decoded in tensors.values()], failures)

    def _decoded(self, row: int, sample: Sample, data: bytes) -> tuple[Tensor, DecodedSample]:
        file = io.BytesIO(data)
        file.name = sample.key
        picture = self.reader.read(file, max_size=self.max_size)
        geometry = picture.original_geometry
        shape = picture.tensor.shape
        in_boxes = in_mask = None
        if sample.boxes:
            in_boxes = regions_of(None, [list(sample.boxes)], shape, 1, geometry)
        if (mask := self.source.read_mask(sample)) is not None:
            mask_file = io.BytesIO(mask)
            mask_file.name = sample.mask or ""
            in_mask = regions_of(torch.from_numpy(read_mask(mask_file)).unsqueeze(0), None, shape, 1, geometry)
        decoded = DecodedSample(
            row,
            hashlib.sha256(data).digest(),
            geometry.size,
            geometry,
            sample.label,
            None if in_boxes is None else in_boxes[0, 0],
            None if in_mask is None else in_mask[0, 0],
        )
        return picture.tensor, decoded


def failure(row: int, stage: str, error: BaseException) -> Failure:
    """The failure that an exception is."""
    return Failure(row, stage, type(error).__name__, " ".join(str(error).split())[:1000])


def decoded_batches(
    samples: SampleList,
    source: Source,
    loaded: LoadedModel,
    bounds: Sequence[tuple[int, int]],
    *,
    max_size: int | None,
    workers: int,
) -> Iterator[DecodedBatch]:
    """The batches, in their sequence. With no workers they are decoded in this process.

    Args:
        samples: The frozen list.
        source: Reads the samples.
        loaded: The model.
        bounds: First and last sample of each batch, the last exclusive.
        max_size: The largest side of a picture before the preprocessing, in pixels.
        workers: How many processes decode.

    Raises:
        PictureError: When a worker process dies, as some decoders do with a hostile file.
    """
    if not bounds:
        return
    rows = samples.rows(bounds[0][0], bounds[-1][1])
    batches = _Batches(rows, source, reader_of(loaded), bounds, max_size)
    options: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    loader = DataLoader(batches, batch_size=None, num_workers=workers, worker_init_fn=_one_thread, **options)
    try:
        yield from loader
    except RuntimeError as error:
        if "worker" in str(error) and "exited unexpectedly" in str(error):
            raise PictureError(f"a process that decodes pictures has died ({error})") from error
        raise


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
