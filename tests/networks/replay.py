"""Networks that share modules, write in place or return containers, and networks that no replay can reproduce."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Counted:
    """How often a convolution's arithmetic ran, which a module call that returns what was noted does not do."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.count, was = 0, convolution._conv_forward

        def counted(*args: Any) -> Tensor:  # a function, because torchpeek restores the objects in attributes
            self.count += 1
            return was(*args)

        convolution._conv_forward = counted  # type: ignore[method-assign]


class Shared(nn.Module):
    """One ReLU and one convolution in four places; the layer holds further ones, and is held."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.block = nn.Sequential(self.act, self.same, nn.BatchNorm2d(4), self.act)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.same(self.act(self.stem(x))))
        b = self.block(a)
        return self.head((self.act(self.same(b)) + a).mean((2, 3)))


class WritesInPlace(nn.Module):
    """Into what was noted, into the layer's output, and into an output whose return value it then ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.after = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.stem(x)
        y = self.layer(F.relu(shortcut))
        y += shortcut
        shortcut += 2 * self.after(y)
        return self.head(F.relu_(shortcut).mean((2, 3)))


class OverwritesEarly(nn.Module):
    """What a module returned is overwritten before the layer is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a += 1
        a *= a
        return self.head((self.layer(a) + a).mean((2, 3)))


class Containers(nn.Module):
    """Tuples, dicts and numbers between the modules, and a mapping at the end."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
            return x * 2, {"half": x / 2, "size": x.shape[2], "none": None}

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self) -> Tensor:
            return self.table

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.table = nn.Conv2d(3, 4, 3, padding=1), self.Pair(), self.Table()
        self.layer, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        double, rest = self.pair(self.stem(x))
        y = self.layer(double) + rest["half"] * rest["size"] + self.table()
        return {"logits": self.head(y.mean((2, 3)))}


class SequenceFirst(nn.Module):
    """Positions first, batch second, as nn.MultiheadAttention has it; and windows folded into the batch."""

    class Folded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # (N, C, 8, 8) -> (4 N, C, 4, 4)
            windows = x.unflatten(2, (2, 4)).unflatten(4, (2, 4))
            return windows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 4, 3, padding=1), nn.MultiheadAttention(4, 2)
        self.folded, self.layer = self.Folded(), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        tokens = a.flatten(2).permute(2, 0, 1)  # (positions, N, C)
        attended, _ = self.attention(tokens, tokens, tokens)
        windows = self.folded(a)
        y = self.layer(a).flatten(2).permute(2, 0, 1) * attended
        return self.head(y.mean(0) + windows.unflatten(0, (len(x), 4)).amax((1, 3, 4)))


class CallsForward(nn.Module):
    """Past the modules' hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem.forward(x)
        return self.head.forward(self.layer(a).mean((2, 3)) * a.amax((2, 3)))


class Plain(nn.Module):
    """A stem, the layer and a head; `end` says what becomes of the stem's output and the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.after = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.end(a, self.layer(a)).mean((2, 3)))

    def end(self, a: Tensor, y: Tensor) -> Tensor:
        return self.after(y) * a


class TwoStreams(Plain):
    """Folded into the batch the other way round: all samples of the first stream, then all of the second."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x.flip(-1)])

    def __init__(self) -> None:
        super().__init__()
        self.both = self.Both()

    def forward(self, x: Tensor) -> Tensor:
        two, count = self.both(self.stem(x)), len(x)
        y = self.layer(two[:count])
        return self.head((y * two[:count] + self.after(two[count:]).cumsum(-1)).mean((2, 3)))


class Opaque(Plain):
    """What the module returns holds tensors, and numbers of the batch, where nobody sees them."""

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return type("Box", (), {"tensor": x * 2, "sizes": [float(each) for each in x.mean((1, 2, 3))]})()

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = self.Wrapped()

    def forward(self, x: Tensor) -> Tensor:
        box = self.wrapped(self.stem(x))
        scale = torch.tensor(box.sizes, dtype=x.dtype).view(-1, 1, 1, 1)
        return self.head((self.layer(box.tensor) * box.tensor * (1 + scale)).mean((2, 3)))


class IgnoresTheReturn(Plain):
    """An in-place ReLU, called for its effect. A first picture of zeros shows nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        self.relu(a)
        return self.head((self.layer(a) + a).mean((2, 3)))


class WritesIntoItsInput(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x -= 1.5
        x *= 2
        return super().forward(x)


class NowAndThen(Plain):
    def end(self, a: Tensor, y: Tensor) -> Tensor:
        if float(y.mean()) > 0:
            a += 2 * self.after(y)
        return a * y


class MaskedNowAndThen(Plain):
    """An assignment by mask, which torch lets write into a view that repeats one sample."""

    def end(self, a: Tensor, y: Tensor) -> Tensor:
        if bool((y > 1.5).any()):
            a[y > 1.5] = 5.0
        return a * y


class PastTheCounter(Plain):
    """Writes that torch does not count."""

    def end(self, a: Tensor, y: Tensor) -> Tensor:
        result = a * y
        a.data.add_(1)
        return result
