"""Whether the code of a model shows that a layer is called at most once in a pass, without running it."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn

# With these, code reaches its members without naming them.
_UNNAMED_ACCESS = {
    *("children", "modules", "named_children", "named_modules", "get_submodule"),
    *("_modules", "getattr", "vars", "__dict__"),
}
_LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
_MOST_FUNCTIONS = 100


def may_be_called_again(model: nn.Module, layer: nn.Module) -> bool:
    """Whether a pass may call the layer several times, as far as the code of the modules around it shows.

    It may not where every module around it names the next one once in the code that its `forward` reaches, outside of
    loops, and where the layer has one place in the model.
    """
    paths = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    if len(paths) != 1:
        return True
    module = model
    for name in paths[0].split("."):
        if not _calls_once(module, name):
            return True
        module = module._modules[name]  # type: ignore[assignment]  # it is on the path of a module
    return False


def _calls_once(module: nn.Module, name: str) -> bool:
    """Whether one call of the module calls this child at most once."""
    if type(module).forward is nn.Sequential.forward:
        return True
    if "forward" in module.__dict__:  # another function in place of the class's own
        return False
    uses = 0
    waiting, visited = [("forward", False)], 0
    while waiting:
        function, repeated = waiting.pop()
        code = _code(type(module), function)
        if code is None:
            continue
        visited += 1
        for instruction, inner in _instructions(code):
            used = instruction.argval
            if used in _UNNAMED_ACCESS or visited > _MOST_FUNCTIONS:  # or functions that name each other
                return False
            if instruction.opname.startswith(_LOADS):
                often = repeated or inner
                if used == name and often:
                    return False
                uses += used == name
                waiting.append((used, often))
    return uses == 1  # not named at all: by a way that is not seen here


def _code(cls: type[nn.Module], name: str) -> CodeType | None:
    """The code of a method or property of the class, if it is its own and not one of nn.Module."""
    function = getattr(cls, name, None)
    function = getattr(function, "fget", function)
    if not isinstance(function, FunctionType) or function is getattr(nn.Module, name, None):
        return None
    return function.__code__


def _instructions(code: CodeType) -> Iterator[tuple[dis.Instruction, bool]]:
    """The instructions of the code and of functions inside it, and whether they may run often."""
    instructions = list(dis.get_instructions(code))
    loops = any(instruction.opname.startswith("JUMP_BACKWARD") for instruction in instructions)
    yield from ((instruction, loops) for instruction in instructions if isinstance(instruction.argval, str))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from ((instruction, True) for instruction, _ in _instructions(constant))
