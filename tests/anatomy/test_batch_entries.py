"""What of a batch the model is called with: of loaders of pairs, triples and dicts, and of texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) + self.b(right)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.embed(input_ids).mean(1))


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 3), torch.randn(size, 4)) for size in (5, 2)]


def means(model: nn.Module, calls: list[tuple[Tensor, ...]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.b(right) for _, right in calls]).double().mean(0)


class TestArguments:
    @pytest.mark.parametrize("arguments", [(0, 1), [0, -1], lambda batch: batch, lambda batch: tp.Arguments(batch)])
    def test_two_inputs_from_a_loader_of_pairs(self, arguments: Any) -> None:
        model, batches = Two(), pairs()
        found = tp.statistics(model, batches, arguments=arguments)
        torch.testing.assert_close(found["b"].output.mean.float(), means(model, batches).float())
        assert found["a"].output.summary().count == 14

    @pytest.mark.parametrize("together", [tuple, list])
    @pytest.mark.parametrize("arguments", [None, 0, lambda batch: batch[0]])
    def test_two_inputs_in_one_entry(self, together: type, arguments: Any) -> None:
        """What a DataLoader yields for a data set of ((a, b), label)."""
        model = Two()
        batches = [(together(pair), torch.zeros(len(pair[0])).long()) for pair in pairs()]
        target = 1 if callable(arguments) else None
        found = tp.statistics(model, batches, arguments=arguments, target=target, loss=F.cross_entropy)
        torch.testing.assert_close(found["b"].output.mean.float(), means(model, [pair for pair, _ in batches]).float())
        assert found["b"].gradient.calls == 2

    def test_a_dict_with_entries_that_the_model_does_not_take(self) -> None:
        model = Two()
        batches = [{"left": left, "right": right, "label": 3} for left, right in pairs()]
        with pytest.raises(InputError, match=r"takes no 'label'.*Next: arguments=\['left', 'right'\]"):
            tp.statistics(model, batches)
        found = tp.statistics(model, batches, arguments=["left", "right"])
        torch.testing.assert_close(
            found["b"].output.mean.float(), means(model, [(0, d["right"]) for d in batches]).float()
        )

    def test_of_a_data_loader(self) -> None:
        data = torch.utils.data.TensorDataset(torch.randn(6, 3), torch.randn(6, 4), torch.tensor([0, 1] * 3))
        loader = torch.utils.data.DataLoader(data, batch_size=4)
        model = Two()
        found = tp.statistics(model, loader, arguments=(0, 1), loss=F.cross_entropy)
        total = torch.zeros(2)
        for left, right, labels in loader:
            sums = (model.a(left) + model.b(right)).detach().requires_grad_()
            F.cross_entropy(sums, labels).backward()
            total += sums.grad.sum(0)
        torch.testing.assert_close(found["a"].gradient.mean.float(), total / 6, rtol=1e-4, atol=1e-7)
        turned = [(labels, right, left) for left, right, labels in loader]
        again = tp.statistics(
            model, turned, arguments=lambda batch: (batch[2], batch[1]), target=0, loss=F.cross_entropy
        )
        torch.testing.assert_close(again["a"].gradient.mean, found["a"].gradient.mean)

    def test_of_a_dict(self) -> None:
        batches = [{"right": right, "left": left, "labels": torch.zeros(len(left)).long()} for left, right in pairs()]
        model = Two()
        found = tp.statistics(model, batches, arguments=("left", "right"), loss=F.cross_entropy)
        torch.testing.assert_close(
            found["b"].output.mean.float(), means(model, [(0, d["right"]) for d in batches]).float()
        )
        one = tp.statistics(nn.Linear(3, 2), batches, arguments="left", target="labels", loss=F.cross_entropy)
        assert one[0].gradient.calls == 2

    def test_a_data_set_without_targets(self) -> None:
        data = torch.utils.data.TensorDataset(torch.randn(6, 3))
        found = tp.statistics(nn.Linear(3, 2), torch.utils.data.DataLoader(data, batch_size=4))
        assert found[0].output.summary().count == 12

    def test_what_is_unclear_names_the_argument(self) -> None:
        triple = [(*pairs()[0], torch.zeros(5))]
        with pytest.raises(InputError, match=r"'left' and 'right'.*pair \(\(5, 3\), \(5, 4\)\).*arguments=\(0, 1\)"):
            tp.statistics(Two(), pairs())
        with pytest.raises(InputError, match=r"tuple of 3 entries.*arguments="):
            tp.statistics(Two(), triple)
        with pytest.raises(InputError, match=r"arguments names 7.*there are: 0, 1, 2"):
            tp.statistics(Two(), triple, arguments=(0, 7))
        with pytest.raises(InputError, match="target names 'label'"):
            tp.statistics(Two(), triple, arguments=(0, 1), target="label")
        with pytest.raises(InputError, match="arguments is "):
            tp.statistics(Two(), triple, arguments=())
        with pytest.raises(InputError, match=r"a batch is a Tensor.*function of the batch"):
            tp.statistics(nn.Linear(3, 2), [torch.randn(4, 3)], arguments=(0,))
        with pytest.raises(InputError, match=r"tp\.Arguments\(\(a, b\)\)"):
            tp.gradient_flow(Two(), pairs()[0])


class TestTexts:
    def test_no_function_of_anatomy_asks_for_a_picture(self) -> None:
        model = Text().eval()
        ids = {"input_ids": torch.randint(0, 10, (4, 7)), "attention_mask": torch.ones(4, 7).long()}
        labels = torch.tensor([0, 1, 0, 1])
        found = tp.statistics(model, [{**ids, "labels": labels}], arguments=tuple(ids), loss=F.cross_entropy)
        embedded = model.embed(ids["input_ids"]).detach().double()
        torch.testing.assert_close(found["embed"].output.mean, embedded.mean((0, 1)), rtol=1e-5, atol=1e-7)
        F.cross_entropy(model(**ids), labels).backward()
        flow = tp.gradient_flow(model, ids, labels)
        assert flow.norm_of("head") == pytest.approx(
            float(torch.nn.utils.get_total_norm([each.grad for each in model.head.parameters()])), rel=1e-5
        )
        assert torch.equal(tp.activations(model, ids, "embed")["embed"], model.embed(ids["input_ids"]))
        assert [row.output for row in tp.layers(model, ids)] == ["(N, 7, 6)", "(N, 2)"]
        assert len(tp.plan(model, ids)) == 2

    def test_a_heatmap_says_what_it_lies_over(self) -> None:
        with pytest.raises(InputError, match=r"heatmap lies over.*'input_ids' \(4, 7\).*tp\.statistics"):
            tp.explain(Text(), {"input_ids": torch.randint(0, 10, (4, 7))})

    def test_indices_of_samples_alone(self) -> None:
        class Rates(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.users, self.items = nn.Embedding(5, 3), nn.Embedding(6, 3)

            def forward(self, user: Tensor, item: Tensor) -> Tensor:
                return (self.users(user) * self.items(item)).sum(-1)

        batches = [(torch.randint(0, 5, (size,)), torch.randint(0, 6, (size,))) for size in (4, 3)]
        found = tp.statistics(Rates(), batches, arguments=(0, 1))
        assert [row.output.channels for row in found] == [3, 3]
