"""docs/hooks.md: every block runs on its own, and every trap is on the page."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.modules import module as process

from paths import ROOT

PAGE = (ROOT / "docs" / "hooks.md").read_text()

# What the page must have, each with a block that shows it.
TRAPS = """
A hook that is added during forward misses that call
A hook with prepend=True does not come first
A removed hook fires once more
A pre-hook with keyword arguments makes the call fail
The clean-up hook does not run on Ctrl-C
The clean-up hook gets None, and its own error disappears
A global clean-up hook fails only when the model fails
The hook is silent when the model calls layer.forward
The hook on out_proj of an attention layer never fires
The hook on a ModuleList never fires
The hook on the attention dropout never fires
A function in forward has no layer to hook
A function mode sees attention as one call
A global hook sees only the outside of a transformer layer
The hook gets a nested tensor
A layer is missing from named_modules
Only the last of several calls is kept
The hook fires twice in one training step
The second run of a checkpointed layer is not the one that was changed
The first call of a checkpointed layer has no gradient
The hook also fires under functional_call
A one-line hook breaks the model
The captured output is the input itself
The gradient of the captured output has too much in it
The captured output has no negative numbers
A view returned from the hook does not protect the capture
Nothing says that a capture is stale
Inference tensors have no version
The captured output is bfloat16 although the model is float32
The captured tensor is dead after vmap
The backward pass complains about a view that is modified in place
The backward hook never fires: the layer returns a dict
The layer with the backward hook raises a TypeError
The gradient of an input is missing
The backward hook never fires: the model is frozen
The frozen model raises once the hook returns a leaf
The backward hook never fires: autograd.grad
The model with a backward hook fails under torch.func.grad
retain_grad gives the gradient of another tensor
retain_grad gives the sum of two backward passes
The gradient of a shared weight arrives in parts
The recorded gradient is not the one that reaches the weight
autograd.grad gives the gradient of another tensor
The gradient of one layer costs a whole backward pass
The old backward hook gives gradients of the wrong shapes
A hook on several gradients gets None among them
Only the inner one of two saved-tensor hooks fires
Memory grows with every step
Memory grows although the backward hook was removed
The hook is ignored after torch.compile
The hook fires in the first step only
The late hook fires now and then
Every step compiles anew
The hook breaks the graph
The captured tensor appears not to have been used
One layer is compiled, and the hook on the original is silent
A compiled nn.Sequential heeds late hooks in one version and not in another
An exported or traced model keeps what a removed hook did
The model refuses hooks
deepcopy fails once the model has run
The copy writes into the store of the original
torch.save fails on a lambda
The module in the hook is not the one in the model
A setting of the main thread is missing in the hook
The layer is not found in DistributedDataParallel
The hook sees only a part of the weight
""".strip().splitlines()

NEED_GLOO = {"The layer is not found in DistributedDataParallel", "The hook sees only a part of the weight"}


def blocks() -> list[tuple[str, int, str]]:
    """The heading above each block of Python, the number of lines above it, and its code."""
    found, heading, start = [], "", 0
    lines = PAGE.splitlines()
    for number, line in enumerate(lines, 1):
        if line == "```python":
            start = number
        elif line == "```" and start:
            found.append((heading, start, "\n".join(lines[start : number - 1])))
            start = 0
        elif not start and line.startswith("#"):
            heading = line.lstrip("# ")
    return found


def as_parameters() -> list[object]:
    """One for each block; a second one under the same heading is numbered."""
    seen: Counter[str] = Counter()
    parameters = []
    for heading, start, code in blocks():
        seen[heading] += 1
        name = heading if seen[heading] == 1 else f"{heading} ({seen[heading]})"
        parameters.append(pytest.param(heading, start, code, id=name))
    return parameters


@pytest.mark.parametrize(("heading", "start", "code"), as_parameters())
def test_the_block_runs(heading: str, start: int, code: str, tmp_path: Path, capfd) -> None:
    if heading in NEED_GLOO and not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch was built without gloo")
    if "fully_shard" in code and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch shards on GPUs only")
    # A file, which the compiler reads, with the code on the same lines as on the page.
    file = tmp_path / "block.py"
    file.write_text("\n" * start + code + "\n")
    try:
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "block"})
    finally:
        if "compile" in code or "export" in code:
            torch._dynamo.reset()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "" or heading in NEED_GLOO  # it may say that it falls back to the loopback address
    assert not [name for name, table in vars(process).items() if re.match("_global_.*hooks", name) and table]
    assert torch.is_grad_enabled()


def test_every_block_ends_in_what_it_shows() -> None:
    for heading, start, code in blocks():
        last = ast.parse(code).body[-1]
        assert any(isinstance(node, ast.Assert) for node in ast.walk(last)), f"{heading}, line {start}"


def test_no_trap_is_lost() -> None:
    assert {heading for heading, _, _ in blocks()} >= set(TRAPS)
    assert len(set(TRAPS)) == len(TRAPS)


def test_the_contents_are_the_sections() -> None:
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE)
    assert [title for title, _ in listed] == sections
    assert [anchor for _, anchor in listed] == [re.sub(r"[^\w -]", "", s).lower().replace(" ", "-") for s in sections]


def test_it_keeps_to_its_width() -> None:
    code = {number for _, start, text in blocks() for number in range(start + 1, start + 1 + len(text.splitlines()))}
    for number, line in enumerate(PAGE.splitlines(), 1):
        assert len(line) <= (120 if number in code else 125) or line.startswith("|"), number
