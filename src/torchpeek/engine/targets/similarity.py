"""Target for the similarity of embeddings."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchpeek.engine.targets.output_parts import resolve_part, tensor_at
from torchpeek.errors import TargetError, shown, type_shown
from torchpeek.keywords import checked_methods


@checked_methods
@dataclass(frozen=True, eq=False)
class SimilarityScores:
    """The cosine similarity of the model's output to fixed embeddings.

    Args:
        labels: (N, K), int64: the indices of the embeddings, which may differ between the samples.
        embeddings: (K, D): the embeddings.
        part: The path of the output's embedding in the model's output; "" where the output is the tensor itself.
        kind: What a score is.
        noun: What a label counts.

    Example:
        >>> question = tp.targets.SimilarityScores(torch.tensor([[0]]), torch.tensor([[0.0, 2.0]]))
        >>> question(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
        tensor([[1.]])
    """

    labels: Tensor  # (N, K), int64
    embeddings: Tensor  # (K, D)
    part: str = ""
    kind: str = "cosine similarity"
    noun: str = "embedding"

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores in [-1, 1], at least float32.

        Raises:
            TargetError: When the output has no tensor at `part`.

        Example:
            >>> question = tp.targets.SimilarityScores(torch.tensor([[0, 1]]), torch.eye(2))
            >>> question(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
            tensor([[0., 1.]])
        """
        values = tensor_at(output, self.part).flatten(1)  # (n, D)
        embeddings = self.embeddings.to(values)[self.labels.to(values.device)[rows.to(values.device)]]  # (n, K, D)
        return torch.cosine_similarity(values.unsqueeze(1), embeddings, dim=2)

    def select(self, rows: slice | Tensor, columns: slice) -> SimilarityScores:
        """Select some of the samples and of the embeddings.

        Args:
            rows: Which of the N samples.
            columns: Which of the K embeddings.

        Returns:
            The question of these samples and embeddings.

        Example:
            >>> question = tp.targets.Similarity(torch.eye(2)).bind(torch.rand(3, 2))
            >>> question.select(slice(0, 1), slice(1, 2)).labels
            tensor([[1]])
        """
        return replace(self, labels=self.labels[rows][:, columns])


@checked_methods
@dataclass(frozen=True, eq=False)
class Similarity:
    """The cosine similarity of the model's output, an embedding (N, D), to that of another picture, or of a text.

    Args:
        to: (D,) or (K, D): embeddings that the same model, or its text encoder, returned. With `pairs`, (N, D).
        part: The path of a tensor in the model's output, as `tp.record` names it. "" for the only tensor, or for the
            one with the name `image_embeds`, `embeddings` or `pooler_output`.
        pairs: Whether each sample has an embedding of its own: the score of sample n is the similarity to `to[n]`.
            False: each sample is compared with all embeddings.
        samples: With `pairs`, which entries of `to` belong to the samples; None for all.

    Example:
        >>> question = tp.targets.Similarity(torch.tensor([0.0, 2.0])).bind(torch.rand(1, 2))
        >>> question(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
        tensor([[1.]])
        >>> pairs = tp.targets.Similarity(torch.eye(2), pairs=True).bind(torch.rand(2, 2))
        >>> pairs(torch.eye(2), torch.tensor([0, 1]))
        tensor([[1.],
                [1.]])
    """

    to: Tensor
    part: str = ""
    _: KW_ONLY
    pairs: bool = False
    samples: slice | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, bool):
            raise TargetError(f"Similarity(pairs={shown(self.pairs)}): allowed: True, False")

    def bind(self, output: Any) -> SimilarityScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, K), K the number of embeddings. With `pairs`, labels (N, 1).

        Raises:
            TargetError: When the embeddings do not have the output's D, are zero, or are not finite; with `pairs`, when
                there are not N.

        Example:
            >>> target = tp.targets.Similarity(torch.eye(3))
            >>> target.bind(torch.rand(2, 3)).labels
            tensor([[0, 1, 2],
                    [0, 1, 2]])
        """
        part = resolve_part(output, self.part, ("image_embeds", "embeddings", "pooler_output"))
        values = tensor_at(output, part).flatten(1)  # (N, D)
        fits = isinstance(self.to, Tensor) and self.to.ndim in (1, 2) and self.to.shape[-1] == values.shape[1]
        if not fits or not self.to.numel():
            got = f"shape {tuple(self.to.shape)}" if isinstance(self.to, Tensor) else type_shown(self.to)
            raise TargetError(f"Similarity takes embeddings (D,) or (K, D) with D = {values.shape[1]}; got {got}")
        embeddings = self.to.detach().reshape(-1, values.shape[1])
        if not (embeddings.isfinite().all(1) & (embeddings != 0).any(1)).all():
            raise TargetError(
                "Similarity(to=...) has NaN or infinity, or an embedding that is zero, which has no direction. Give "
                "embeddings that are finite and not zero"
            )
        numbers = torch.arange(len(embeddings), device=values.device)
        if not self.pairs:
            return SimilarityScores(numbers.expand(len(values), -1), embeddings, part)
        if self.samples is not None:
            numbers = numbers[self.samples]
        if len(numbers) != len(values):
            raise TargetError(
                f"Similarity(pairs=True) takes an embedding for each picture, (N, D): got {len(numbers)} for "
                f"{len(values)} pictures. Without pairs, each picture is compared with all embeddings"
            )
        return SimilarityScores(numbers.unsqueeze(1), embeddings, part, kind="cosine similarity of its pair")

    def of_samples(self, first: int, last: int) -> Similarity:
        """Restrict the target to some of the samples.

        Args:
            first: The first of the samples.
            last: One after the last of them.

        Returns:
            The target for these samples: of pairs it uses theirs.

        Example:
            >>> target = tp.targets.Similarity(torch.eye(4), pairs=True).of_samples(1, 3)
            >>> target.bind(torch.rand(2, 4)).labels
            tensor([[1],
                    [2]])
        """
        return replace(self, samples=slice(first, last)) if self.pairs else self
