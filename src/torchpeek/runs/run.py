"""Run: a finished or unfinished run, read lazily. Reading one imports nothing that it names."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from os import PathLike

import duckdb
import numpy as np
import pyarrow as pa
import torch

from torchpeek.engine.targets import Answered
from torchpeek.errors import FormatError, RunError, SampleChanged, TorchpeekError, closest, notify, shown
from torchpeek.heatmap import Heatmap
from torchpeek.picture import Geometry, Picture
from torchpeek.runs.object_storage import ObjectStorage
from torchpeek.runs.part_content import ACTIVATIONS, FAILURES, INDEX, MAPS, PREDICTIONS
from torchpeek.runs.parts import complete_parts, part_folder
from torchpeek.runs.run_folder import SAMPLES, RunFolder, opened, storage_of
from torchpeek.runs.sources import stored_source
from torchpeek.runs.spec import Group, RunSpec
from torchpeek.runs.stored_maps import read_activations, read_map
from torchpeek.runs.tables import ERRORS, HEATMAPS, PREDICTED
from torchpeek.store import read_image
from torchpeek.store.records import json_text

_VIEWS = {
    "samples": """
        select s.key, coalesce(nullif(s.location, ''), s.key) as path, lower(hex(p.digest)) as digest,
               s.label, coalesce(c.name, s.label_name) as label_name, s.split, p.width, p.height,
               p.top_classes[1] as prediction, n.name as predicted_name, p.top_probabilities[1] as probability,
               p.top_classes[1] = s.label as correct, p.top_classes, p.top_probabilities
        from listed s
        left join predicted p on p.row = s.file_row_number
        left join classes c on c.label = s.label
        left join classes n on n.label = p.top_classes[1]
        order by s.file_row_number
    """,
    "heatmaps": """
        select s.key, h.method, h.layer, h.target, h.label as class_index,
               coalesce(c.name, 'class ' || h.label) as class, parse_path(h.filename)[-2] as group_name,
               h.score, h.centre_x,
               h.centre_y, h.spread, h.border, h.peak_x, h.peak_y, h.entropy, h.inside_box, h.inside_mask,
               h.metrics
        from located h
        join listed s on s.file_row_number = h.row
        left join classes c on c.label = h.label
    """,
    "errors": """
        select distinct s.key, coalesce(nullif(s.location, ''), s.key) as path, e.stage, e.error, e.message
        from failed e
        join listed s on s.file_row_number = e.row
    """,
}


class Run:
    """A run, whose tables and maps are read when they are asked for.

    Args:
        folder: Its folder.

    Example:
        >>> run = tp.open_run(folder / "epoch-12")
        >>> run.samples.fetchall()[0][0]
        'cat/0.png'
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        methods = ", ".join(name for group in self._folder.groups().values() for name in group.methods)
        return f"Run({self._folder.storage.place!r}, {self._folder.cut.samples:,} samples{methods and ': '}{methods})"

    @property
    def spec(self) -> RunSpec:
        """What its numbers depend on."""
        return self._folder.spec

    @property
    def data(self) -> str:
        """Where the samples come from: a folder, a file or a URL. Empty where it has no such place."""
        return str(self._folder.source.get("path", ""))

    @property
    def samples(self) -> duckdb.DuckDBPyRelation:
        """A row a sample: key, path, digest, label, label_name, prediction, predicted_name, probability, correct."""
        return self._connection.view("samples")

    @property
    def heatmaps(self) -> duckdb.DuckDBPyRelation:
        """A row a map: key, method, layer, target, class, score, and where the heat lies."""
        return self._connection.view("heatmaps")

    @property
    def errors(self) -> duckdb.DuckDBPyRelation:
        """A row a sample that could not be used: key, path, stage, error, message."""
        return self._connection.view("errors")

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Query the tables samples, heatmaps and errors.

        Args:
            query: A query in DuckDB's SQL.

        Returns:
            A relation, which is computed when it is read: `.df()`, `.pl()`, `.arrow()`, `.fetchall()`.

        Raises:
            RunError: When the query cannot be run.

        Example:
            >>> run = tp.open_run(folder / "epoch-12")
            >>> run.sql("select label_name, count(*) from samples group by 1 order by 1").fetchall()
            [('cat', 2), ('dog', 1)]
        """
        try:
            return self._connection.sql(query)
        except duckdb.Error as error:
            raise RunError(f"the query cannot be run: {error}") from error

    def heatmap(
        self,
        key: str | PathLike[str],
        method: str,
        layer: str | None = None,
        target: int | str | None = None,
        *,
        group: str | None = None,
        picture: bool = True,
    ) -> Heatmap:
        """Read one map.

        Args:
            key: The key or the path of the sample.
            method: The method.
            layer: The layer; None where there is one.
            target: The class index or the name of the class; None where there is one.
            group: The group that it was computed in, as the column group_name has it; None where there is one, or all
                have the same map.
            picture: Whether to read the picture, too.

        Returns:
            The Heatmap, values (1, 1, *grid), with its picture where that can still be read from the data.

        Raises:
            RunError: When the run has no such map, or several.

        Example:
            >>> run = tp.open_run(folder / "epoch-12")
            >>> run.heatmap("cat/0.png", "gradcam").values.shape
            torch.Size([1, 1, 14, 14])
        """
        found = self._connection.execute(
            """
            select s.key, h.method, h.layer, h.label, coalesce(c.name, '') as class, h.score, h.tensor, h.place,
                   h.exponent, h.filename, h.target
            from located h join listed s on s.file_row_number = h.row left join classes c on c.label = h.label
            where s.key = $key or coalesce(nullif(s.location, ''), s.key) = $key
            """,
            {"key": str(key)},
        ).fetchall()
        if not found:
            raise RunError(f"no heatmaps of {shown(str(key))} in this run{self._why_none(str(key))}")
        rows = [
            row
            for row in found
            if row[1] == method
            and layer in (None, row[2])
            and (target is None or (row[3] == target if isinstance(target, int) else row[4] == target))
            and group in (None, row[9].split("/")[-2])
        ]
        if len({(row[2], row[3], self._asked(row[9], method)) for row in rows}) != 1:
            have = sorted(
                {f"{row[1]} at {row[2]} of {row[4] or row[3]} in group {row[9].split('/')[-2]}" for row in found}
            )
            raise RunError(
                f"{len(rows)} heatmaps of {shown(str(key))} by {method!r}; allowed: method, layer=, target= and group= "
                f"of one of these: {'; '.join(have[:10])}"
            )
        name, _, _, label, class_name, score, tensor, place, exponent, file, _ = rows[0]
        stored = read_map(self._folder.storage, self._maps_of(file), tensor, place)
        values = torch.ldexp(stored.values.float(), torch.tensor(exponent))
        return Heatmap(
            values[None, None],
            torch.tensor([[score]]),
            Answered(torch.tensor([[label]]), stored.score_kind),
            replace(stored.provenance, class_names={label: class_name} if class_name else {}),
            self._picture_if_there(name) if picture else (),
        )

    def _picture_if_there(self, key: str) -> tuple[Picture, ...]:
        try:
            return (self.picture(key),)
        except SampleChanged as error:
            notify(f"{error}; the heatmap has no picture")
        except TorchpeekError:  # the data is somewhere else, or gone
            pass
        return ()

    def _asked(self, index: str, method: str) -> str:
        """Everything that the maps of a method depend on in the group of a table. Groups may differ in metrics."""
        group = self._folder.groups()[index.split("/")[-2]]
        return json_text([group.methods[method], group.fuse, group.smooth, group.dtype])

    def _maps_of(self, index: str) -> str:
        """The name of the file of maps that lies beside a table, as DuckDB names that."""
        *_, shard, group, _ = index.split("/")
        return f"{part_folder(int(shard), group)}/{MAPS}"

    def activations(self, layer: str) -> tuple[list[str], torch.Tensor]:
        """Read what was kept of the activations of a layer.

        Args:
            layer: The name of the layer.

        Returns:
            The keys of the samples, n of them, and the values (n, ...), in the dtype in which they are stored.

        Raises:
            RunError: When nothing was kept of this layer, or the activations of the pictures differ in shape.

        Example:
            >>> keys, values = tp.open_run(folder / "epoch-12").activations("0")
            >>> len(keys), values.shape
            (3, torch.Size([3, 4]))
        """
        rows, values, shapes, layers = list[int](), list[torch.Tensor](), set[str](), set[str]()
        groups = self._folder.groups()
        for shard, name in complete_parts(self._folder.storage):
            if name not in groups or not groups[name].keep:
                continue
            file = f"{part_folder(shard, name)}/{ACTIVATIONS}"
            for tensor, of_tensor, kept in read_activations(self._folder.storage, file):
                of_layer, _, sizes = tensor.rpartition("/")
                layers.add(of_layer)
                if of_layer == layer:
                    rows += of_tensor.tolist()
                    values.append(kept)
                    shapes.add(sizes)
        if not values:
            raise RunError(f"no activations of {shown(layer)} in this run{closest(layer, sorted(layers))}")
        if len(shapes) > 1:
            raise RunError(f"the activations of {shown(layer)} have several shapes: {', '.join(sorted(shapes))}")
        numbers = dict(
            self._connection.execute(
                "select file_row_number, key from listed where file_row_number in (select unnest($rows))",
                {"rows": rows},
            ).fetchall()
        )
        return [numbers[row] for row in rows], torch.cat(values)

    def picture(self, key: str | PathLike[str]) -> Picture:
        """Read the picture of a sample from its source, preprocessed as in the run.

        Args:
            key: The key or the path of the sample.

        Returns:
            The Picture, upright and of its own size. Its tensor (1, 3, H, W) is the picture, from 0 to 1, and its
            geometry says which part of it the model has seen.

        Raises:
            RunError: When the run has no such sample.
            SampleChanged: When its bytes are not those of the run.

        Example:
            >>> run = tp.open_run(folder / "epoch-12")
            >>> run.picture("cat/0.png").image.size
            (40, 30)
        """
        found = self._connection.execute(
            """
            select s.file_row_number, s.key, p.digest, p.width, p.height, p.box
            from listed s join predicted p on p.row = s.file_row_number
            where s.key = $key or coalesce(nullif(s.location, ''), s.key) = $key
            """,
            {"key": str(key)},
        ).fetchall()
        if not found:
            raise RunError(f"no picture {shown(str(key))} in this run{self._why_none(str(key))}")
        row, name, digest, width, height, box = found[0]
        (sample,) = self._folder.samples.rows(row, row + 1)
        data = stored_source(self._folder.source).read(sample)
        if hashlib.sha256(data).digest() != digest:
            raise SampleChanged(f"{name}: the picture has changed since the run has read it")
        file = io.BytesIO(data)
        file.name = name
        upright = read_image(file)
        tensor = torch.from_numpy(np.asarray(upright.image).copy()).permute(2, 0, 1).unsqueeze(0).float() / 255
        return Picture(upright.image, tensor, Geometry((width, height), tuple(box)), name, upright.conversions)

    def _why_none(self, key: str) -> str:
        errors = self._connection.execute(
            "select stage, error, message from errors where key = $key or path = $key", {"key": key}
        ).fetchall()
        if errors:
            stage, error, message = errors[0]
            return f": it failed at the stage {stage!r}: {error}: {message}"
        keys = [row[0] for row in self._connection.execute("select key from listed limit 10000").fetchall()]
        return f"{closest(key, keys)}"

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        try:
            return self._connected()
        except duckdb.Error as error:
            raise FormatError(f"{self._folder.storage.place}: damaged ({error}). Next: torchpeek verify") from error

    def _connected(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        storage = self._folder.storage
        if isinstance(storage, ObjectStorage):
            connection.register_filesystem(storage.system)
        connection.execute(
            f"create view listed as select * from read_parquet({_quoted(storage.url(SAMPLES))}, file_row_number = true)"
        )
        labels = list(range(len(self._folder.class_names)))
        classes = pa.table({"label": pa.array(labels, pa.int32()), "name": list(self._folder.class_names)})
        connection.register("classes", classes)
        parts, groups = list(complete_parts(storage)), self._folder.groups()
        predicting = next((name for name, group in groups.items() if group.predictions), None)
        for view, file, schema, has in _PART_TABLES:
            files = [
                storage.url(f"{part_folder(shard, name)}/{file}")
                for shard, name in parts
                if name in groups and has(groups[name]) and (view != "predicted" or name == predicting)
            ]
            if files:
                listed = ", ".join(map(_quoted, files))
                connection.execute(f"create view {view} as select * from read_parquet([{listed}], filename = true)")
            else:
                connection.register(view, schema.append(pa.field("filename", pa.string())).empty_table())
        for name, query in _VIEWS.items():
            connection.execute(f"create view {name} as {query}")
        return connection


_PART_TABLES: tuple[tuple[str, str, pa.Schema, Callable[[Group], bool]], ...] = (
    ("predicted", PREDICTIONS, PREDICTED, lambda group: group.predictions),
    ("located", INDEX, HEATMAPS, lambda group: bool(group.methods)),
    ("failed", FAILURES, ERRORS, lambda group: True),
)


def _quoted(text: str) -> str:
    """A name as DuckDB reads it: in quotes, and with letters of patterns that stand for themselves."""
    return "'" + re.sub(r"([*?\[])", r"[\1]", text).replace("'", "''") + "'"


def open_run(path: str | PathLike[str]) -> Run:
    """Open a run.

    Args:
        path: Its folder or URL.

    Returns:
        The Run.

    Raises:
        FormatError: When there is no run, it is damaged, or it is of another version.

    Example:
        >>> run = tp.open_run(folder / "epoch-12")
        >>> run.errors.fetchall()
        []
    """
    return Run(opened(storage_of(path)))
