"""A data set of Hugging Face: a folder that `save_to_disk` wrote, or a name, read by the package datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchpeek.errors import FormatError, InputError, PictureError, TorchpeekError, listed_names, shown
from torchpeek.runs.labels import Classes, FoundLabels, known_synsets
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources.per_process import PerProcess
from torchpeek.store.regular_files import read_regular
from torchpeek.system_errors import is_from_outside

_DATASETS = 4  # the first version that runs no code that comes with a data set
_ROWS = 10_000  # whose labels are read at a time


class HuggingFaceSource:
    """The rows of a data set of Hugging Face, whose pictures are found by the type of their column.

    A key is the number of the row, with the name of the split before it where there are several: "validation/17".

    Args:
        name: The folder, or the name of the data set.
        split: The split; None for all.
        on_disk: Whether the name is a folder that `save_to_disk` wrote.
        class_names: The names of the model's classes.
    """

    def __init__(self, name: str, split: str | None, on_disk: bool, class_names: Sequence[str] | None = None) -> None:
        self.name, self.split, self.on_disk, self._class_names = name, split, on_disk, class_names
        self._splits = PerProcess(partial(_opened, name, split, on_disk))
        self._labels: FoundLabels | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Workers read, and list nothing."""
        return {**self.__dict__, "_class_names": None, "_labels": None}

    @property
    def description(self) -> Mapping[str, Any]:
        """What run.json says of it."""
        return {"kind": "hugging face", "name": self.name, "split": self.split, "on_disk": self.on_disk}

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        return f"the data set {self.name}" + (f", split {self.split}" if self.split else "")

    @property
    def labels_from(self) -> str:
        """What the column of labels says. It is known when all samples were listed."""
        words = "" if self._labels is None else self._labels.words
        return words and f"the data set has {words}"

    def samples(self) -> Iterator[Sample]:
        """The samples, split by split and row by row."""
        classes = Classes(self._class_names, known_synsets(self._class_names))
        splits, before = self._splits.get(), None
        for split, (pictures, labels) in splits.items():
            ((column, feature),) = ((None, None),) if labels is None else labels.features.items()
            numbered = getattr(feature, "names", None)
            if self._labels is None or numbered != before:
                self._labels, before = FoundLabels(classes, numbered), numbered
            for start in range(0, len(pictures), _ROWS):
                stop = min(start + _ROWS, len(pictures))
                values = [None] * (stop - start) if column is None else list(labels[start:stop][column])
                for row, value in enumerate(values, start):
                    key = f"{split}/{row}" if len(splits) > 1 else str(row)
                    label, name = self._labels.added(value, f"{self.words}, row {row}")
                    yield Sample(key, f"{split}/{row}", label, name, split=split or None)

    def read(self, sample: Sample) -> bytes:
        """The bytes of the picture in the row."""
        split, _, row = sample.location.rpartition("/")
        splits = self._splits.get()
        pictures = splits[split][0] if split in splits else ()
        if not row.isdecimal() or int(row) >= len(pictures):
            raise PictureError(f"{sample.key}: {self.words} has no row {shown(sample.location)}; it was changed")
        try:
            (value,) = pictures[int(row)].values()
        except Exception as error:  # of pyarrow, or of what fetches the data set
            if is_from_outside(error):
                raise
            raise PictureError(f"{sample.key}: cannot be read from {self.words} ({error})") from error
        return _picture_bytes(value, sample.key, Path(self.name) if self.on_disk else None)

    def read_mask(self, sample: Sample) -> bytes | None:
        """None: such a data set has no masks that are found by their type."""
        return None


def _picture_bytes(value: Any, key: str, folder: Path | None) -> bytes:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if data is None and isinstance(path, str):
            inner = Path(path)
            if folder is not None and (".." in inner.parts or not (folder / inner).is_relative_to(folder)):
                raise PictureError(f"{key}: its picture is {shown(path)}, which is no path inside of {folder}")
            return read_regular(inner if folder is None else folder / inner, PictureError)
        value = data
    if not isinstance(value, bytes):
        raise PictureError(f"{key}: the row has {shown(value)}; allowed: the bytes of a picture")
    return value


def _image_column(features: Any, words: str) -> str:
    names = [name for name, feature in features.items() if _type_name(feature) == "Image"]
    if "image" in names or len(names) == 1:
        return "image" if "image" in names else names[0]
    if not names:
        raise InputError(
            f"{words}: has no column of pictures, but {listed_names(features)}. Next: "
            "dataset.cast_column(name, datasets.Image())"
        )
    raise InputError(f"{words}: has several columns of pictures: {listed_names(names)}. Next: call one of them 'image'")


def _label_column(features: Any) -> str | None:
    """The column of classes: called label, or the only ClassLabel."""
    if "label" in features:
        return "label"
    numbered = [name for name, feature in features.items() if _type_name(feature) == "ClassLabel"]
    return numbered[0] if len(numbered) == 1 else None


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "_type", type(feature).__name__))


def _opened(name: str, split: str | None, on_disk: bool) -> dict[str, tuple[Any, Any]]:
    """Name of a split, or "" -> the column of its pictures, which are not decoded, and that of its labels or None."""
    try:
        import datasets
    except ImportError as error:
        raise TorchpeekError("datasets is not installed; next: pip install datasets") from error
    words = f"the data set {name}"
    if int(datasets.__version__.partition(".")[0]) < _DATASETS:
        raise TorchpeekError(
            f"datasets {datasets.__version__} is installed, which may run code of a data set; next: pip install "
            f"'datasets>={_DATASETS}'"
        )
    try:
        if on_disk:
            loaded = datasets.load_from_disk(name)
            if split is not None and isinstance(loaded, dict):
                loaded = loaded[split]
        else:
            loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever fetching and reading raise
        if is_from_outside(error):
            raise
        raise FormatError(f"{words}: cannot be opened ({' '.join(str(error).split())[:300]})") from error
    splits = dict(loaded.items()) if isinstance(loaded, dict) else {split or "": loaded}
    return {each: _columns(rows.with_format(None), words) for each, rows in splits.items()}


def _columns(rows: Any, words: str) -> tuple[Any, Any]:
    import datasets

    image, label = _image_column(rows.features, words), _label_column(rows.features)
    pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return pictures, None if label is None else rows.select_columns([label])


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def hugging_face_source(name: str, class_names: Sequence[str] | None) -> HuggingFaceSource:
    """The source for a folder that `save_to_disk` wrote, or for hf:name or hf:name:split.

    Args:
        name: The folder, or the text after "hf:".
        class_names: The names of the model's classes.
    """
    folder, _, split = name.rpartition(":")
    if not folder or Path(name).exists():
        folder, split = name, ""
    path = Path(folder)
    if path.is_dir() and is_saved_dataset(path):
        return HuggingFaceSource(str(path.resolve()), split or None, True, class_names)
    return HuggingFaceSource(str(path.resolve()) if path.is_dir() else folder, split or None, False, class_names)
