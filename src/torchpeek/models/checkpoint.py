"""Checkpoint: a name on the hub or a folder, read by transformers, with named errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchpeek.errors import ModelError, ModelNotFound, WeightsError
from torchpeek.models.fetching import fetched
from torchpeek.system_errors import is_of_library


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that transformers reads. An existing folder is read without a network."""

    name: str
    trusted: bool = False  # whether the checkpoint's code may run

    @property
    def spec(self) -> str:
        """The checkpoint as `load_model` names it."""
        return f"hf:{self.name}"

    @property
    def local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.name).is_dir()

    def has(self, *files: str) -> bool:
        """Return whether it is a folder with at least one of these files."""
        return self.local and any((Path(self.name) / file).is_file() for file in files)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for every `from_pretrained` of an Auto class."""
        # trust_remote_code is never None: transformers would ask in the terminal.
        return {"local_files_only": self.local, "trust_remote_code": self.trusted}

    def config(self) -> Any:
        """Return the configuration. Raises ModelNotFound, ModelError, and WeightsError if it cannot be fetched."""
        import transformers

        if self.local and not self.has("config.json"):
            raise ModelNotFound(
                f"the folder {self.name!r} has no config.json; allowed: a folder that save_pretrained wrote. Next: "
                "call save_pretrained(FOLDER) on the model and on its image processor"
            )
        if not self.local and (self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1):
            raise ModelNotFound(
                f"no folder {self.name!r}; allowed: an existing folder, or a name on the hub, NAME or OWNER/NAME"
            )
        try:
            with self.quietly():
                return transformers.AutoConfig.from_pretrained(self.name, **self.options)
        except OSError as error:
            if not is_of_library(error):
                raise
            if self.local:
                raise ModelError(f"the config.json in {self.name!r} cannot be read: {first_line(error)}") from error
            raise WeightsError(
                f"{self.spec} could not be fetched ({first_line(error)}). Next: check the name, try again online, or "
                "give a folder that save_pretrained wrote"
            ) from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if self.refused(error):
                raise self.untrusted() from error
            raise ModelError(
                f"transformers {transformers.__version__} cannot make a model of the config of {self.spec}: "
                f"{first_line(error)}. Next: install a newer transformers, or give a package.module:callable that "
                "makes the model"
            ) from error

    def weights(self, read: Callable[[], Any]) -> Any:
        """Return what `read` reads of the checkpoint's weights. Raises WeightsError."""
        try:
            return read() if self.local else fetched(self.spec, read)
        except OSError as error:
            if not is_of_library(error):
                raise
            raise WeightsError(
                f"no weights can be read from the folder {self.name!r} ({first_line(error)}). Next: "
                "model.save_pretrained(FOLDER), --weights FILE, or --weights random for the untrained network"
            ) from error
        except WeightsError:
            raise
        except (
            Exception
        ) as error:  # for a damaged or unfitting file: an error of safetensors, pickle, torch or transformers
            if isinstance(error, ValueError) and self.refused(error):
                raise self.untrusted() from error
            raise WeightsError(
                f"the weights of {self.spec} cannot be read or do not fit its config: {first_line(error)}"
            ) from error

    def refused(self, error: Exception) -> bool:
        """Return whether transformers raised `error` because it may not run the checkpoint's code."""
        return not self.trusted and "trust_remote_code" in str(error)

    def untrusted(self) -> ModelError:
        """Return the error about code that may not run."""
        return ModelError(
            f"{self.spec} needs code of its own, which may do anything. Next: read it. Then, only if you trust its "
            "author, use --trust-remote-code, or load_model(..., trust_remote_code=True)"
        )

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Silence what transformers prints while it reads. Notices and errors say what matters of it.

        The progress bar of a download stays.
        """
        from transformers.utils import logging

        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(50)  # CRITICAL: what it logs as an error is also raised
        if bars and self.local:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars and self.local:
                logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, to be quoted in one of torchpeek's."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
