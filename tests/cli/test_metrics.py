"""torchpeek metrics: the table of metrics."""

from __future__ import annotations

import torchpeek as tp
from cli_runner import run, strict


class TestMetrics:
    def test_table(self, capsys) -> None:
        assert run("metrics") == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        assert [line.split()[:3] for line in lines] == [
            [each.name, "higher" if each.higher_is_better else "lower", each.needs] for each in tp.METRICS.values()
        ]
        for line, each in zip(lines, tp.METRICS.values(), strict=True):
            assert each.cost() in line
            assert each.paper in line
            assert line.endswith(each.summary)

    def test_json(self, capsys) -> None:
        assert run("metrics", "--json") == 0
        printed = strict(capsys.readouterr().out)
        assert [each["name"] for each in printed] == list(tp.METRICS)
        for row, each in zip(printed, tp.METRICS.values(), strict=True):
            assert row["options"] == dict(each.options)
            assert (row["needs"], row["cost"]) == (each.needs, each.cost())
            assert (row["higher_is_better"], row["paper"]) == (each.higher_is_better, each.paper)
            assert row["summary"] == each.summary
