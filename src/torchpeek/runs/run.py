"""Run: a finished or unfinished run, read lazily. Reading one imports nothing that it names."""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from pathlib import Path

import duckdb
import pyarrow as pa
import torch

from torchpeek.engine.targets import Answered
from torchpeek.errors import RunError, closest, shown
from torchpeek.heatmap import Heatmap
from torchpeek.provenance import Provenance
from torchpeek.runs.parts import complete_parts, part_folder
from torchpeek.runs.run_folder import SAMPLES, RunFolder, opened
from torchpeek.runs.spec import RunSpec
from torchpeek.runs.stored_maps import read_map
from torchpeek.runs.tables import ERRORS, HEATMAPS, PREDICTED

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
        select s.key, h.method, h.layer, h.target, h.label, coalesce(c.name, 'class ' || h.label) as class, h.score,
               h.centre_x, h.centre_y, h.spread, h.border, h.peak_x, h.peak_y, h.entropy, h.inside_box, h.inside_mask,
               h.metrics
        from located h
        join listed s on s.file_row_number = h.row
        left join classes c on c.label = h.label
    """,
    "errors": """
        select s.key, coalesce(nullif(s.location, ''), s.key) as path, e.stage, e.error, e.message
        from failed e
        join listed s on s.file_row_number = e.row
    """,
}


class Run:
    """A run, whose tables and maps are read when they are asked for.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @property
    def spec(self) -> RunSpec:
        """What its numbers depend on."""
        return self._folder.spec

    @property
    def samples(self) -> duckdb.DuckDBPyRelation:
        """A row a sample: key, path, digest, label, label_name, prediction, predicted_name, probability, correct, ..."""
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
        """
        try:
            return self._connection.sql(query)
        except duckdb.Error as error:
            raise RunError(f"the query cannot be run: {error}") from error

    def heatmap(
        self, key: str | PathLike[str], method: str, layer: str | None = None, target: int | str | None = None
    ) -> Heatmap:
        """Read one map.

        Args:
            key: The key or the path of the sample.
            method: The method.
            layer: The layer; None where there is one.
            target: The class index or the name of the class; None where there is one.

        Returns:
            The Heatmap, values (1, 1, *grid).

        Raises:
            RunError: When the run has no such map, or several.
        """
        found = self._connection.execute(
            """
            select s.key, h.method, h.layer, h.label, coalesce(c.name, '') as class, h.score, h.tensor, h.place,
                   h.exponent, h.filename
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
        ]
        if len(rows) != 1:
            have = sorted({f"{row[1]} at {row[2]} of {row[4] or row[3]}" for row in found})
            raise RunError(
                f"{len(rows)} heatmaps of {shown(str(key))} by {method!r}; allowed: method, layer= and target= of one "
                f"of these: {'; '.join(have[:10])}"
            )
        _, _, _, label, _, score, tensor, place, exponent, file = rows[0]
        stored = read_map(Path(file).with_name("maps.safetensors"), tensor, place)
        values = torch.ldexp(stored.values.float(), torch.tensor(exponent))
        return Heatmap(
            values[None, None],
            torch.tensor([[score]]),
            Answered(torch.tensor([[label]]), stored.score_kind),
            Provenance(**stored.provenance),
        )

    def _why_none(self, key: str) -> str:
        error = self._connection.execute(
            "select stage, error, message from errors where key = $key or path = $key", {"key": key}
        ).fetchone()
        if error is not None:
            return f": it failed at the stage {error[0]!r}: {error[1]}: {error[2]}"
        keys = [row[0] for row in self._connection.execute("select key from listed limit 10000").fetchall()]
        return f"; {closest(key, keys)}"

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        path = self._folder.path
        connection.execute(
            "create view listed as select * from read_parquet($file, file_row_number = true)".replace(
                "$file", _quoted(path / SAMPLES)
            )
        )
        names = self._folder.class_names
        connection.execute("create table classes (label integer, name varchar)")
        if names:
            connection.executemany("insert into classes values (?, ?)", list(enumerate(names)))
        parts = list(complete_parts(path))
        groups = self._folder.groups()
        for view, file, schema, has in (
            ("predicted", "predicted.parquet", PREDICTED, lambda group: group.predictions),
            ("located", "index.parquet", HEATMAPS, lambda group: bool(group.methods)),
            ("failed", "errors.parquet", ERRORS, lambda group: True),
        ):
            files = [
                part_folder(path, shard, name) / file for shard, name in parts if name in groups and has(groups[name])
            ]
            if files:
                listed = ", ".join(map(_quoted, files))
                connection.execute(f"create view {view} as select * from read_parquet([{listed}], filename = true)")
            else:
                empty = schema.append(pa.field("filename", pa.string())).empty_table()
                connection.register(view, empty)
        for name, query in _VIEWS.items():
            connection.execute(f"create view {name} as {query}")
        return connection


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def open_run(path: str | PathLike[str]) -> Run:
    """Open a run.

    Args:
        path: Its folder.

    Returns:
        The Run.

    Raises:
        FormatError: When there is no run, it is damaged, or it is of another version.
    """
    return Run(opened(Path(path)))
