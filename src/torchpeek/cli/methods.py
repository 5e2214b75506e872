"""torchpeek methods: the methods that there are."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from torchpeek.cam import METHODS
from torchpeek.cli.console import print_json, print_table


def methods(
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """List the methods: what each computes, what it needs, what it costs.

    Parameters
    ----------
    json
        Print JSON, for machines.
    markdown
        Print a Markdown table, as in the README.
    debug
        Show the traceback of an error.
    """
    rows = [(each.name, each.summary, each.cost, each.paper) for each in METHODS.values()]
    if json:
        print_json(
            [
                {
                    "name": m.name,
                    "summary": m.summary,
                    "needs": m.needs,
                    "cost": m.cost,
                    "paper": m.paper,
                    "options": dict(m.options),
                }
                for m in METHODS.values()
            ]
        )
    elif markdown:
        print(methods_markdown())
    else:
        print_table(("method", "what it shows", "passes, however many classes", "paper"), rows)
    return 0


def methods_markdown() -> str:
    """The registry as a Markdown table. The README holds a copy, which a test compares."""
    lines = ["| method | what it shows | passes, however many classes | paper |", "|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.summary} | {m.cost} | {_link(m.paper)} |" for m in METHODS.values()]
    return "\n".join(lines)


def _link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    address = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
    return f"[{number}]({address}{number})" if address else "a baseline"
