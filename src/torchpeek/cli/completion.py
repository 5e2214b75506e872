"""torchpeek --install-completion: what a shell completes after a TAB."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from cyclopts import App

from torchpeek.cli.terminal import print_text
from torchpeek.errors import FolderError, OptionError
from torchpeek.store import write_whole
from torchpeek.system_errors import is_of_system

SHELLS = ("bash", "zsh", "fish")


def run(app: App, shell: str | None, folder: Path | None) -> int:
    """Write the script for the shell, and print what to do next. Returns the exit status."""
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    if shell is None:
        try:
            shell = detect_shell()
        except ShellDetectionError as error:
            raise OptionError(
                f"the shell cannot be recognised; name it: --install-completion --shell {'|'.join(SHELLS)}"
            ) from error
    if shell not in SHELLS:
        raise OptionError(f"--shell is {shell}; allowed: {', '.join(SHELLS)}")
    path = _path(shell, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve(strict=path.exists())  # it may be a link into a folder that the user keeps elsewhere
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        if isinstance(error, OSError) and not is_of_system(error):
            raise
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise FolderError(f"{path}: cannot be written ({reason})") from error
    if target.exists() and not target.is_file():
        raise FolderError(f"{path}: cannot be written, because it is not a regular file. Next: move it away")
    write_whole(target, script(app, shell).encode())
    print_text(f"written to {path}", _next_step(shell, path))
    return 0


def script(app: App, shell: Any) -> str:
    """The script of completions for the shell: commands, options, the names of methods and metrics, and files."""
    text: str = app.generate_completion(shell=shell)
    if shell != "bash":
        return text
    # Without these, a name with a space is two names, and a folder is completed without its slash. The bash 3.2 of
    # macOS has no mapfile.
    files = 'COMPREPLY=( $(compgen -f -- "${cur}") )'
    line = 'while IFS= read -r name; do COMPREPLY+=("${name}"); done < <(compgen -f -- "${cur}")'
    text = text.replace(files, f"local name; COMPREPLY=(); {line}")
    return text.replace("complete -F", "complete -o filenames -F")


def _path(shell: str, folder: Path | None) -> Path:
    name = {"bash": "torchpeek", "zsh": "_torchpeek", "fish": "torchpeek.fish"}[shell]
    standard = {
        "bash": Path.home() / ".local/share/bash-completion/completions",
        "zsh": Path.home() / ".zsh/completions",
        "fish": Path.home() / ".config/fish/completions",
    }
    return (folder or standard[shell]) / name


def _next_step(shell: str, path: Path) -> str:
    if shell == "bash":
        line = f"source {quote(str(path.resolve()))}"
        return f"new shells read it, if bash-completion is installed; else add this line to ~/.bashrc: {line}"
    if shell == "zsh":
        folder = quote(str(path.parent.resolve()))
        return f"add this line to ~/.zshrc, before compinit is called: fpath=({folder} $fpath)"
    return "new shells read it"
