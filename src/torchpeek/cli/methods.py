"""torchpeek methods: the registered methods."""

from __future__ import annotations

from torchpeek.cam import METHODS
from torchpeek.cli.console import print_json, print_table
from torchpeek.cli.terminal import print_text


def run(*, json: bool, markdown: bool) -> int:
    """List the methods. Returns the exit status."""
    if json:
        print_json(
            [
                {
                    "name": method.name,
                    "summary": method.summary,
                    "needs": method.needs,
                    "cost": method.cost,
                    "paper": method.paper,
                    "options": dict(method.options),
                }
                for method in METHODS.values()
            ]
        )
    elif markdown:
        print_text(*methods_markdown().split("\n"))
    else:
        rows = [(method.name, method.summary, method.cost, method.paper) for method in METHODS.values()]
        header = ("method", "what it shows", "passes, however many classes", "paper")
        print_table(header, rows, prose=header[1:3])
    return 0


def methods_markdown() -> str:
    """The registry as a Markdown table. A test compares it with the copy in the README."""
    lines = ["| method | what it shows | passes, however many classes | paper |", "|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.summary} | {m.cost} | {_link(m.paper)} |" for m in METHODS.values()]
    return "\n".join(lines)


def _link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    address = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
    return f"[{number}]({address}{number})" if address else "a baseline"
