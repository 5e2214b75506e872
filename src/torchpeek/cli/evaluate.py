"""torchpeek evaluate: can the heatmaps be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from torchpeek.cli.console import counted, print_json, print_skipped, print_table, print_written, progress
from torchpeek.cli.evaluation_run import COLUMNS, Scorebook
from torchpeek.cli.loading import Flag, Many, Out, loaded_model, output_folder, titled
from torchpeek.cli.method_selection import Chosen, chosen_metrics
from torchpeek.cli.regions import regions_of
from torchpeek.cli.targets import Wanted
from torchpeek.errors import OptionError, TorchpeekError, notify
from torchpeek.explanation import How
from torchpeek.metrics import FEWEST, HEADER
from torchpeek.metrics.verdicts import Verdicts
from torchpeek.render import curves
from torchpeek.store import OutputFolder, figure_bytes, find_pictures, json_text, parquet_bytes

_METRICS = ["deletion", "insertion", "average-drop", "average-gain"]
_DRAWN = ("deletion", "insertion")
_FILES = {"curves.png": "curves", "results.parquet": "table"}  # -> under which key of results.json it is named
_READING = "; in brackets the 95 % interval of the mean; better: by more than chance has it"


def evaluate(
    *pictures: str,
    model: str,
    method: Annotated[list[str], Parameter(negative="")] = ["gradcam"],  # noqa: B006  cyclopts shows it as the default
    metric: Many = None,
    metric_option: Many = None,
    boxes: Path | None = None,
    masks: Path | None = None,
    class_: Annotated[list[str] | None, Parameter(name="--class", negative="")] = None,
    box: Annotated[list[int] | None, Parameter(negative="")] = None,
    pixels: Flag = False,
    text: Many = None,
    layer: Many = None,
    layout: str | None = None,
    option: Many = None,
    out: Out = None,
    overwrite: Flag = False,
    weights: str | None = None,
    trust_pickle: Flag = False,
    trust_remote_code: Flag = False,
    device: str = "cpu",
    seed: int = 0,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Measure how far heatmaps can be trusted, beside a random heatmap and a centred Gaussian, which know nothing.

    Prints a table, the best method first for each metric, and says which methods are not better than these two by more
    than chance has it; of a few pictures that cannot be told. With --out it writes results.json, with everything;
    results.parquet, a row for each picture, metric and method (needs pyarrow, the extra "data"); and curves.png, the
    mean curves of deletion and insertion (needs matplotlib, the extra "plot"). What is not installed is said.

    Example: torchpeek evaluate holiday/ --model torchvision:resnet50 --method gradcam --method layercam -o trust/

    Parameters
    ----------
    pictures
        Files, folders (the pictures right in them) and globs.
    model
        torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (of transformers), or package.module:callable (also from the
        working directory).
    method
        Give it several times for several methods; "torchpeek methods" lists them. "all" is every one that needs no more
        than one pass and its gradients, and that this model and layer allow.
    metric
        Give it several times for several metrics; "torchpeek metrics" lists them, and docs/metrics.md says what they
        are. "all" is every one that needs neither to know where the object is nor to ask the method again. Without it,
        deletion, insertion, average-drop and average-gain. Of these, and of all, those are left out that are of
        probabilities where what is asked is none.
    metric_option
        An option of a metric, as METRIC.NAME=VALUE; "torchpeek metrics --json" lists them. Such as --metric-option
        deletion.steps=20.
    boxes
        Where the object is, for metrics that ask: a JSON file, {"cat.jpg": [[left, top, right, bottom], ...], ...}, by
        file name or path, in pixels of the original picture, upright.
    masks
        The same as a folder of pictures of the same names (but for the ending) and sizes: the object is where they are
        not black.
    class_
        The class to explain, by name or index; several times for several, whose mean counts. Without it, the predicted
        class. Of a detector its surest box of that class, of a segmentation the pixels of that class.
    box
        Explain the detected box of this rank by its score, 0 the surest; several times for several. With --class, of
        the boxes of that class. A detector is asked about its surest box anyway.
    pixels
        Explain the pixels of the class given with --class, or of the one that wins most. A segmentation is asked that
        anyway.
    text
        Explain how alike the picture and this text are to CLIP or SigLIP; several times for several.
    layer
        The layer to look at; "torchpeek layers" lists them. Several for one map made of all theirs. Without it, the
        last one with a grid; for polycam and refinecam the last ones of the coarsest grids. Methods that look at every
        layer take no notice of it.
    layout
        How what the --layer returns is to be read, where its shape leaves a doubt: channels-first, channels-last,
        tokens, channel-tokens or sequence-first, alone or with the grid, such as "tokens 1+14x14".
    option
        An option of a method, as NAME=VALUE: for every method that has it; "torchpeek methods --json" lists them.
    out
        The folder to write to. Without it, only the table is printed.
    overwrite
        Write into a folder that has files already. An earlier run's results.json, results.parquet and curves.png are
        replaced, or taken away.
    weights
        "random", a file (.safetensors, or a state_dict of torch.save), or the name of torchvision's weights. Without
        it, the pretrained ones.
    trust_pickle
        Load a weights file that may run code.
    trust_remote_code
        Run the code that a checkpoint of transformers brings along.
    device
        cpu, cuda, cuda:1, mps.
    seed
        For all that is drawn: by methods, metrics, random heatmaps and the intervals.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    if not pictures:
        raise OptionError("no pictures; give files, folders or globs: torchpeek evaluate holiday/ --model ...")
    wanted = Wanted(class_ or [], None, None, box or [], pixels, text or [])
    chosen = Chosen(wanted, method, option or [], layer, layout, How(None, None, seed))
    metrics = chosen_metrics(metric or _METRICS, metric_option or [])
    found = find_pictures(pictures)
    regions = regions_of(found, metrics, boxes, masks)
    loaded = loaded_model(model, weights, trust_pickle=trust_pickle, device=device, trust_remote_code=trust_remote_code)
    book = Scorebook(chosen.explaining(loaded, found), metrics, regions, named=frozenset(metric or ()))
    with output_folder(out, overwrite=overwrite) as folder:
        try:
            with progress("evaluating", len(found)) as advance:
                for file in found:
                    book.add(file)
                    advance(1)
        except BaseException:
            if folder is not None and book.scored:  # nothing of what was done is lost
                results = _results(book, found)
                folder.write("results.json", json_text(results).encode())  # who ended the command may not wait long
                _write(folder, book, _summed_up(book, results), results)
            raise
        book.check()
        results = _results(book, found)
        verdicts = _summed_up(book, results)
        try:
            if folder is not None:
                _write(folder, book, verdicts, results)
        finally:  # also where the disk is full
            if json:
                print_json(results)
            else:
                _print(book, results, verdicts)
    if folder is not None and not json:
        print_written(folder.path, *(name for name, key in _FILES.items() if key in results), "results.json")
    return 1 if book.skipped else 0


def _results(book: Scorebook, found: Sequence[Path]) -> dict[str, Any]:
    """What is said of each picture; some were not reached if the command was interrupted."""
    done = {*(each.file for each in book.scored), *map(Path, book.skipped.why)}
    return {
        "about": book.about,
        "results": [],
        "pictures": book.pictures(),
        "skipped": book.skipped.why,
        "not_reached": [str(file) for file in found if file not in done],
    }


def _summed_up(book: Scorebook, results: dict[str, Any]) -> Verdicts:
    """What is said of all pictures, added to `results`."""
    verdicts = Verdicts.of(book.joined())
    results["results"] = verdicts.summary
    return verdicts


def _write(folder: OutputFolder, book: Scorebook, verdicts: Verdicts, results: dict[str, Any]) -> None:
    """All files, and none of an earlier run; where the figure and the table are is added to `results`."""
    folder.write("results.json", json_text(results).encode())  # whatever becomes of the others
    for name in _FILES:
        (folder.path / name).unlink(missing_ok=True)
    if book.scored:
        results |= _written(folder, "results.parquet", lambda: parquet_bytes(COLUMNS, book.rows(), book.about))
    if verdicts.panels(_DRAWN):
        results |= _written(folder, "curves.png", lambda: figure_bytes(_figure(book, verdicts)))
    folder.write("results.json", json_text(results).encode())


def _written(folder: OutputFolder, name: str, made: Callable[[], bytes]) -> dict[str, str]:
    """Where it is; or nothing where what it needs is not installed, which is said and loses nothing else."""
    try:
        data = made()
    except TorchpeekError as error:
        notify(f"{name} is left out: {error}")
        return {}
    return {_FILES[name]: str(folder.write(name, data))}


def _figure(book: Scorebook, verdicts: Verdicts) -> Any:
    panels = verdicts.panels(_DRAWN)
    return curves(
        {metric: methods for metric, (methods, _) in panels.items()},
        baselines={metric: baselines for metric, (_, baselines) in panels.items()},
        score=book.score,
        title=f"{titled(book.explaining.loaded.spec, book.explaining.loaded)}, seed {book.seed}",
        seed=book.seed,
    )


def _print(book: Scorebook, results: dict[str, Any], verdicts: Verdicts) -> None:
    if count := len(book.scored):
        print_table(HEADER, verdicts.cells())
        print(f"\n{counted(count, 'picture')}, seed {book.seed}{_READING if count > 1 else ''}")
        if count < FEWEST:
            print(f"of fewer than {FEWEST} pictures nothing can be said of significance; give more")
        else:
            for sentence in verdicts.sentences():
                print(sentence)
    print_skipped(results["skipped"], len(results["skipped"]) + len(results["pictures"]))
    if book.scored:
        about = results["about"]
        print(f"model: {about['model']}, weights: {about['weights']}\nlayer: {about['layer']}")
