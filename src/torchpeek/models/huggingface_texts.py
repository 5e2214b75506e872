"""TextEncoder: the text half of a checkpoint that compares pictures with texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine import as_model_call, run
from torchpeek.errors import InputError, ModelError
from torchpeek.models.checkpoint import Checkpoint, first_line
from torchpeek.models.seeding import seeded
from torchpeek.system_errors import is_from_outside

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


class TextEncoder:
    """Embeds texts with the text half and the tokenizer of a checkpoint, which are loaded on the first call."""

    def __init__(self, checkpoint: Checkpoint, class_name: str, part: str, seed: int | None) -> None:
        self._checkpoint = checkpoint
        self._class_name = class_name
        self._part = part  # the part of the output that is the embedding
        self._seed = seed  # of random weights; None for those of the checkpoint
        self._loaded: tuple[nn.Module, Any] | None = None

    def __call__(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Return the embeddings (K, D), not normalised.

        Raises InputError for a text that is too long, and ModelError if there is no tokenizer.
        """
        if self._loaded is None:
            self._loaded = self._module(), self._tokenizer()
        half, tokenizer = self._loaded
        config: Any = half.config
        most = config.max_position_embeddings
        # SigLIP was trained on texts padded to their full length, and attends to the padding.
        fill: bool | str = "max_length" if config.model_type.startswith("siglip") else True
        tokens = tokenizer(list(texts), padding=fill, max_length=most if fill == "max_length" else None)["input_ids"]
        for text, own in zip(texts, tokens, strict=True):
            if len(own) > most:
                count = len(tokenizer(text)["input_ids"])
                if count > most:
                    raise InputError(f"{text[:40]!r} has {count} tokens; allowed: {most}. Next: give a shorter text")
        ids = torch.tensor(tokens, device=device)  # (K, tokens)
        half.to(device)
        with torch.no_grad():
            embeddings: Tensor = run(half, as_model_call(half, ids))[self._part]
        return embeddings.detach()

    def _module(self) -> nn.Module:
        import transformers

        cls = getattr(transformers, self._class_name)
        with self._checkpoint.quietly():
            if self._seed is not None:
                with seeded(self._seed):
                    half: nn.Module = cls(self._checkpoint.config().text_config)
            else:
                name, local = self._checkpoint.name, self._checkpoint.local
                half = self._checkpoint.weights(lambda: cls.from_pretrained(name, local_files_only=local))
        return half.float().eval()

    def _tokenizer(self) -> Any:
        import transformers

        checkpoint = self._checkpoint
        if checkpoint.local and not checkpoint.has(*_TOKENIZER_FILES):
            raise self._without(f"there is none of {', '.join(_TOKENIZER_FILES)}")
        try:
            with checkpoint.quietly():
                tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.options)
        except Exception as error:  # for damaged or missing files, or a missing package, it may raise anything
            if is_from_outside(error):
                raise
            if checkpoint.refused(error):
                raise checkpoint.untrusted() from error
            raise self._without(first_line(error)) from error
        if len(tokenizer) <= len(
            set(tokenizer.all_special_ids)
        ):  # transformers makes such a tokenizer if it finds no files
            raise self._without("it knows no words")
        return tokenizer

    def _without(self, reason: str) -> ModelError:
        return ModelError(
            f"{self._checkpoint.spec} has no tokenizer that can be used ({reason}), so texts cannot be embedded. Next: "
            "tokenizer.save_pretrained(FOLDER), with the tokenizer of the model"
        )
