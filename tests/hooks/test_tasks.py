"""Asyncio tasks that share a thread: a block takes the calls of the task that opened it, and of no other."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp

MINE, OTHERS = torch.ones(1, 3), torch.ones(2, 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))


async def in_block(model: nn.Module, block: AbstractContextManager[Any], *, call: bool = True) -> tuple[Any, Any]:
    with block as opened:
        await asyncio.sleep(0.01)
        result = model(MINE) if call else None
        await asyncio.sleep(0.02)
    return opened, result


async def elsewhere(model: nn.Module) -> Tensor:
    await asyncio.sleep(0.02)
    result: Tensor = model(OTHERS)
    return result


def both(model: nn.Module, block: AbstractContextManager[Any], *, call: bool = True) -> Any:
    async def run() -> Any:
        return await asyncio.gather(in_block(model, block, call=call), elsewhere(model))

    return asyncio.run(run())


@pytest.mark.parametrize("passes", ["all", "last"])
def test_record_takes_no_calls_of_other_tasks(passes: str) -> None:
    model = network()
    (tape, _), _ = both(model, tp.record(model, "*", passes=passes))
    assert [tuple(tape[name].output.shape) for name in ("0", "1", "2")] == [(1, 4), (1, 4), (1, 2)]


def test_edit_changes_no_calls_of_other_tasks() -> None:
    model = network()
    (_, edited), other = both(model, tp.edit(model, outputs={"2": lambda output: output * 0}))
    assert torch.equal(edited, torch.zeros(1, 2))
    assert torch.equal(other, model(OTHERS))


def test_check_finite_checks_no_calls_of_other_tasks() -> None:
    model = network()

    async def run() -> Tensor:
        async def fail() -> Tensor:
            await asyncio.sleep(0.005)
            result: Tensor = model(MINE * torch.inf - torch.inf)
            return result

        return (await asyncio.gather(in_block(model, tp.check_finite(model), call=False), fail()))[1]

    assert asyncio.run(run()).isnan().all()


def test_a_layer_that_only_another_task_called_is_explained() -> None:
    model = network()
    (tape, _), _ = both(model, tp.record(model, "1"), call=False)
    with pytest.raises(tp.errors.NotFired, match="in another asyncio task"):
        _ = tape["1"].output
    with pytest.warns(tp.errors.Notice, match="in another asyncio task"):
        both(model, tp.edit(model, outputs={"1": lambda output: output}), call=False)


def test_tasks_that_are_started_inside_the_block_belong_to_it() -> None:
    model = network()

    async def run() -> int:
        with tp.record(model, "1", passes="all") as tape:
            await asyncio.gather(elsewhere(model), elsewhere(model))
        return len(tape["1"])

    assert asyncio.run(run()) == 2


def test_a_block_around_the_whole_loop_takes_every_task() -> None:
    model = network()

    async def run() -> None:
        await asyncio.gather(elsewhere(model), elsewhere(model))

    with tp.record(model, "1", passes="all") as tape:
        asyncio.run(run())
    assert len(tape["1"]) == 2


def test_a_block_that_an_ended_task_left_open_takes_the_next_ones() -> None:
    """In a notebook each cell is a task."""
    model = network()
    tape = tp.record(model, "1")

    async def first_cell() -> None:
        tape.__enter__()

    async def second_cell() -> None:
        model(MINE)
        tape.__exit__(None, None, None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first_cell())
    loop.run_until_complete(second_cell())
    loop.close()
    assert tape["1"].output.shape == (1, 4)
