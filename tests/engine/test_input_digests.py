"""Digests of inputs: those of a slow replica, and different for every change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from replicas.input_digests import digest
from torchpeek.engine.input_digests import changed_samples, input_digests

ALONE = ((None,), {})

PICTURES = {
    "float32": torch.randn(3, 3, 5, 7),
    "float64": torch.randn(2, 1, 33, 40, dtype=torch.float64),  # more than a block, and a rest
    "float16": torch.randn(2, 3, 3, 3).half(),
    "bfloat16": torch.randn(2, 3, 3, 3).bfloat16(),
    "uint8": torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8),
    "int64": torch.randint(-(2**62), 2**62, (2, 9)),
    "bool": torch.rand(2, 3, 4) > 0.5,
    "complex64": torch.randn(2, 4, dtype=torch.complex64),
    "not finite": torch.tensor([[[float("nan"), float("inf"), -0.0]]]),
    "one block": torch.randn(2, 1, 32, 32),
    "blocks of blocks": torch.randn(1, 1, 1024, 1025),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_as_the_replica_has_them(kind) -> None:
    picture = PICTURES[kind]
    assert input_digests(picture, ALONE, ()) == tuple(digest(each, {}) for each in picture)


def test_other_arguments_count() -> None:
    picture, own, shared = torch.randn(2, 3, 4, 4), torch.randn(2, 5), torch.arange(7)
    arguments = ((None, own), {"text": {"ids": shared}, "size": 3})
    expected = tuple(digest(picture[n], {"0.1": own[n], "1.text.ids": shared}) for n in range(2))
    assert input_digests(picture, arguments, {"0.1"}) == expected
    changed = ((None, own), {"text": {"ids": shared + 1}, "size": 3})
    assert not set(expected) & set(input_digests(picture, changed, {"0.1"}))


def views(picture: Tensor) -> list[Tensor]:
    wide = torch.zeros(*picture.shape[:-1], 2 * picture.shape[-1])
    wide[..., ::2] = picture
    return [
        picture.to(memory_format=torch.channels_last),
        picture.mT.contiguous().mT,
        wide[..., ::2],
        picture.clone().requires_grad_(),
        torch._neg_view(-picture),
    ]


def test_the_layout_in_memory_does_not_count() -> None:
    picture = torch.randn(2, 3, 8, 6)
    expected = input_digests(picture, ALONE, ())
    for each in views(picture):
        assert input_digests(each, ALONE, ()) == expected
    with torch.inference_mode():
        assert input_digests(picture.clone(), ALONE, ()) == expected
    with torch.no_grad():
        assert input_digests(picture, ALONE, ()) == expected


def test_a_sample_has_its_own_in_every_batch() -> None:
    picture = torch.randn(5, 3, 8, 6)
    whole = input_digests(picture, ALONE, ())
    assert len(set(whole)) == 5
    assert input_digests(picture[[3, 0]], ALONE, ()) == (whole[3], whole[0])
    assert input_digests(picture[2:3], ALONE, ()) == whole[2:3]


def test_any_change_is_noticed() -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 40, 40)
    found = set(input_digests(picture, ALONE, ()))
    flat = picture.view(-1)
    for place in torch.randint(0, flat.numel(), (500,)).tolist():  # the last bit of one element
        changed = flat.clone()
        changed[place] = torch.nextafter(changed[place], torch.tensor(2.0))
        found.add(input_digests(changed.view_as(picture), ALONE, ())[0])
    for place in torch.randint(0, flat.numel() - 1, (500,)).tolist():  # two neighbours change places
        changed = flat.clone()
        changed[place], changed[place + 1] = flat[place + 1], flat[place]
        found.add(input_digests(changed.view_as(picture), ALONE, ())[0])
    for changed in (picture.flip(-1), picture.flip(1), picture.mT, -picture, picture.roll(1024), picture[:, :, 1:]):
        found.add(input_digests(changed, ALONE, ())[0])
    zeros = [input_digests(torch.zeros(1, 1, n), ALONE, ())[0] for n in range(1, 100)]
    assert len(set(zeros)) == 99
    assert len(found) > 950  # a place may be drawn twice


class TestChanged:
    def test_which_and_where_they_are(self) -> None:
        picture = torch.randn(4, 3, 4, 4)
        digests = input_digests(picture, ALONE, ())
        assert changed_samples(digests, picture, ALONE, ()) == {}
        other = picture[[0, 2, 1, 3]].clone()
        other[3] += 1
        assert changed_samples(digests, other, ALONE, ()) == {1: 2, 2: 1, 3: None}

    @pytest.mark.parametrize(
        ("made", "now", "compared"),
        [
            (torch.float32, torch.float64, True),
            (torch.float16, torch.float32, True),
            (torch.bfloat16, torch.float64, True),
            (torch.float64, torch.float32, False),  # float32 has lost what would be compared
            (torch.float32, torch.float16, False),
            (torch.float16, torch.bfloat16, False),
            (torch.uint8, torch.float32, False),
        ],
    )
    def test_of_another_type(self, made, now, compared) -> None:
        picture = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        digests = input_digests(picture.to(made), ALONE, ())
        assert changed_samples(digests, picture.to(now), ALONE, ()) == {}
        assert changed_samples(digests, -picture.to(now), ALONE, ()) == ({0: None, 1: None} if compared else {})

    def test_what_cannot_be_compared(self) -> None:
        picture = torch.randn(2, 3, 4, 4)
        assert changed_samples((), picture, ALONE, ()) == {}
        assert changed_samples(("a", "b"), picture, ALONE, ()) == {}
        assert changed_samples(input_digests(picture[:1], ALONE, ()), picture, ALONE, ()) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", PICTURES)
def test_the_same_on_a_gpu(kind) -> None:
    picture = PICTURES[kind]
    assert input_digests(picture.cuda(), ALONE, ()) == input_digests(picture, ALONE, ())
