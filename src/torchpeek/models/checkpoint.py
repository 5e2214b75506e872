"""Checkpoint: a name on the hub or a folder, and what goes wrong when transformers reads one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchpeek.errors import ModelError, ModelNotFound, WeightsError
from torchpeek.models.fetching import fetched


@dataclass(frozen=True)
class Checkpoint:
    """What transformers is asked to read. A folder is one that exists; nothing is fetched for it."""

    name: str
    trusted: bool = False  # whether its own code may run

    @property
    def spec(self) -> str:
        return f"hf:{self.name}"

    @property
    def local(self) -> bool:
        return Path(self.name).is_dir()

    def has(self, *files: str) -> bool:
        """Whether it is a folder with one of these in it."""
        return self.local and any((Path(self.name) / file).is_file() for file in files)

    @property
    def options(self) -> dict[str, Any]:
        """For every `from_pretrained` of an Auto class."""
        # Never None, at which transformers would ask at the terminal.
        return {"local_files_only": self.local, "trust_remote_code": self.trusted}

    def config(self) -> Any:
        """Its configuration. Raises ModelNotFound, WeightsError for one that cannot be fetched, ModelError."""
        import transformers

        if self.local and not self.has("config.json"):
            raise ModelNotFound(
                f"the folder {self.name!r} has no config.json; allowed: what save_pretrained writes. Next: "
                "model.save_pretrained(FOLDER), and of the model's image processor, too"
            )
        if not self.local and (self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1):
            raise ModelNotFound(f"no folder {self.name!r}; a name on the hub is NAME or OWNER/NAME")
        try:
            with self.quietly():
                return transformers.AutoConfig.from_pretrained(self.name, **self.options)
        except OSError as error:
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
                f"{first_line(error)}. Next: a newer transformers, or a package.module:callable that makes the model"
            ) from error

    def weights(self, read: Callable[[], Any]) -> Any:
        """What `read` reads of the checkpoint's weights. Raises WeightsError."""
        try:
            return read() if self.local else fetched(self.spec, read)
        except OSError as error:
            raise WeightsError(
                f"no weights can be read from the folder {self.name!r} ({first_line(error)}). Next: "
                "model.save_pretrained(FOLDER), --weights FILE, or --weights random for the untrained network"
            ) from error
        except WeightsError:
            raise
        except Exception as error:  # of a damaged or misfit file: safetensors', pickle's, torch's or transformers' own
            if isinstance(error, ValueError) and self.refused(error):
                raise self.untrusted() from error
            raise WeightsError(
                f"the weights of {self.spec} cannot be read or do not fit its config: {first_line(error)}"
            ) from error

    def refused(self, error: Exception) -> bool:
        """Whether `error` is of transformers that was not allowed to run the checkpoint's code."""
        return not self.trusted and "trust_remote_code" in str(error)

    def untrusted(self) -> ModelError:
        """The error about code that may not run."""
        return ModelError(
            f"{self.spec} is made by code of its own, which may do anything. Next: read it; then, only if you trust "
            "whoever wrote it, --trust-remote-code, or load_model(..., trust_remote_code=True)"
        )

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Without what transformers prints as it reads; what matters of it is said by a notice or an error.

        The bar of a download stays.
        """
        from transformers.utils import logging

        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(50)  # CRITICAL: its errors are raised, too
        if bars and self.local:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars and self.local:
                logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The part of another tool's message that fits into one of torchpeek's."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
