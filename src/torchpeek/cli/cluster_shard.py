"""Which shards of a run this process computes: by --shard, or by the variables of a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torchpeek.errors import OptionError


@dataclass(frozen=True)
class ClusterShard:
    """A part of a run.

    Args:
        index: Its number, from 0.
        count: How many parts there are.
        said_by: What says so: --shard, or the name of a variable.
    """

    index: int
    count: int
    said_by: str


def cluster_shard(text: str | None, environment: Mapping[str, str]) -> ClusterShard | None:
    """The part that --shard names, else the one that the cluster says. None where nobody says anything.

    Args:
        text: What --shard says, or None.
        environment: The variables of the process.

    Raises:
        OptionError: When it is no part, or the cluster says only half of it.
    """
    if text is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if match is None:
            raise OptionError(f"--shard is {text}; allowed: I/N with I from 0 to N - 1, such as 0/4")
        return _checked(int(match[1]), int(match[2]), "--shard")
    found = [
        variable for variable in ("JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID", "RANK") if variable in environment
    ]
    if not found:
        return None
    variable = found[0]
    index = _number(variable, environment)
    if variable == "JOB_COMPLETION_INDEX":
        return _checked(index, _number("JOB_COMPLETIONS", environment, beside=variable), variable)
    if variable == "SLURM_ARRAY_TASK_ID":
        first, step = _number("SLURM_ARRAY_TASK_MIN", environment, 0), _number("SLURM_ARRAY_TASK_STEP", environment, 1)
        count = _number("SLURM_ARRAY_TASK_COUNT", environment, beside=variable)
        return _checked((index - first) // max(step, 1), count, variable)
    return _checked(index, _number("WORLD_SIZE", environment, beside=variable), variable)


def _number(
    variable: str, environment: Mapping[str, str], default: int | None = None, *, beside: str | None = None
) -> int:
    text = environment.get(variable, "" if default is None else str(default)).strip()
    if text.isdecimal():
        return int(text)
    reason = f"{beside} is {environment[beside]}, and {variable}" if beside else variable
    raise OptionError(f"{reason} is {text or 'missing'}; allowed: a whole number. Next: set it, or say --shard I/N")


def _checked(index: int, count: int, said_by: str) -> ClusterShard:
    if not 0 <= index < count:
        raise OptionError(
            f"{said_by} says part {index} of {count}; allowed: 0 to {count - 1}. Next: say the part with --shard I/N"
        )
    return ClusterShard(index, count, said_by)
