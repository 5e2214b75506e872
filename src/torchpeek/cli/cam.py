"""torchpeek cam: which part of each picture decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from torchpeek.cam import Smoothing
from torchpeek.cli.cam_run import Gallery, Looks
from torchpeek.cli.console import print_json, print_skipped, print_table, progress
from torchpeek.cli.loading import Flag, Many, loaded_model
from torchpeek.cli.method_selection import Chosen
from torchpeek.cli.targets import Wanted
from torchpeek.errors import OptionError
from torchpeek.explanation import How
from torchpeek.render import COLORMAPS
from torchpeek.store import OutputFolder, find_pictures


def cam(
    *pictures: str,
    model: str,
    method: Annotated[list[str], Parameter(negative="")] = ["gradcam"],  # noqa: B006  cyclopts shows it as the default
    class_: Annotated[list[str] | None, Parameter(name="--class", negative="")] = None,
    top: int | None = None,
    contrast: int | None = None,
    box: Annotated[list[int] | None, Parameter(negative="")] = None,
    pixels: Flag = False,
    text: Annotated[list[str] | None, Parameter(negative="")] = None,
    layer: Many = None,
    layout: str | None = None,
    fuse: str | None = None,
    smooth: Flag = False,
    option: Annotated[list[str] | None, Parameter(negative="")] = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("peek"),
    overwrite: Flag = False,
    weights: str | None = None,
    trust_pickle: Flag = False,
    trust_remote_code: Flag = False,
    colormap: str = "viridis",
    alpha: float = 0.5,
    fade: Flag = False,
    extract: Flag = False,
    batch_size: int = 8,
    device: str = "cpu",
    seed: int = 0,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Show which part of each picture decided, with one method or several.

    Writes, for each picture, an overlay for every method and class, a sheet of them side by side, and the raw heatmaps
    (safetensors, with everything they depend on); and, for all of them, report.html, which needs no other file, and
    results.json. Prints a table of what it wrote.

    Example: torchpeek cam cat.jpg holiday/ --model torchvision:resnet50 --method gradcam --method layercam --class
    "tiger cat"

    Parameters
    ----------
    pictures
        Files, folders (the pictures right in them) and globs.
    model
        torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (of transformers), or package.module:callable (also from the
        working directory).
    method
        Give it several times for several methods, which share one pass; "torchpeek methods" lists them. "all" is every
        one that needs no more than that pass and its gradients, and that this model and layer allow. Those that read
        attention are for transformers whose tokens all attend to each other.
    class_
        The class to explain, by name or index; several times for several. Without it, the predicted class. Of a
        detector its surest box of that class, of a segmentation the pixels of that class.
    top
        Explain the TOP most probable classes of each picture, side by side.
    contrast
        Explain what sets each class apart from the CONTRAST most similar ones (Finer-CAM).
    box
        Explain the detected box of this rank by its score, 0 the surest; several times for several. With --class, of
        the boxes of that class. A detector is asked about its surest box anyway.
    pixels
        Explain the pixels of the class given with --class, or of the one that wins most. A segmentation is asked that
        anyway.
    text
        Explain how alike the picture and this text are to CLIP or SigLIP; several times for several.
    layer
        The layer to look at; "torchpeek layers" lists them. Several, or with --fuse a pattern, for one map made of all
        theirs. Without it, the last one with a grid; for polycam and refinecam the last ones of the coarsest grids.
        Methods that look at every layer (fullgrad, and those that read attention) take no notice of it.
    layout
        How what the --layer returns is to be read, where its shape leaves a doubt: channels-first, channels-last,
        tokens, channel-tokens or sequence-first, alone or with the grid, such as "tokens 1+14x14".
    fuse
        How the maps of several layers become one: max, mean or product.
    smooth
        Average over the picture mirrored and not, times 0.9, 1 and 1.1.
    option
        An option of a method, as NAME=VALUE: for every method that has it; "torchpeek methods --json" lists them. Such
        as --option precision=bfloat16, --option samples=8.
    out
        The folder to write to.
    overwrite
        Write into a folder that has files already, and replace those of the same name.
    weights
        "random", a file (.safetensors, or a state_dict of torch.save), or the name of torchvision's weights. Without
        it, the pretrained ones.
    trust_pickle
        Load a weights file that may run code.
    trust_remote_code
        Run the code that a checkpoint of transformers brings along.
    colormap
        viridis, inferno, turbo, jet; or diverging, which also shows what speaks against the class.
    alpha
        How much of the heat is mixed into the picture, 0 to 1.
    fade
        Mix in less of it where the value is low.
    extract
        Write also the picture times the heatmap, which keeps only what mattered.
    batch_size
        How many pictures go through the model at once.
    device
        cpu, cuda, cuda:1, mps.
    seed
        For methods that draw random numbers.
    json
        Print JSON, for machines.
    debug
        Show the traceback of an error.
    """
    if not pictures:
        raise OptionError(
            "no pictures; give files, folders or globs: torchpeek cam cat.jpg --model torchvision:resnet50"
        )
    if batch_size < 1:
        raise OptionError("--batch-size is at least 1")
    if colormap not in COLORMAPS or not 0 <= alpha <= 1:
        raise OptionError(
            f"--colormap is one of {', '.join(COLORMAPS)}, and --alpha 0 to 1; got {colormap} and {alpha}"
        )
    wanted = Wanted(class_ or [], top, contrast, box or [], pixels, text or [])
    chosen = Chosen(wanted, method, option or [], layer, layout, How(fuse, Smoothing() if smooth else None, seed))
    found = find_pictures(pictures)
    loaded = loaded_model(model, weights, trust_pickle=trust_pickle, device=device, trust_remote_code=trust_remote_code)
    explaining = chosen.explaining(loaded, found)
    folder = OutputFolder.prepared(out, overwrite=overwrite)
    gallery = Gallery(explaining, folder, Looks(colormap, alpha, fade, extract))
    try:
        with progress("explaining", len(found)) as advance:
            for start in range(0, len(found), batch_size):
                gallery.add(found[start : start + batch_size])
                advance(len(found[start : start + batch_size]))
    except BaseException:
        if gallery.empty:
            folder.abandon()
        else:
            gallery.finish()  # nothing of what was done is lost
        raise
    try:
        results = gallery.finish()
    except Exception:
        folder.abandon()
        raise
    if json:
        print_json(results)
    else:
        _print(results, gallery.cells)
    return 1 if results["skipped"] else 0


def _print(results: dict[str, Any], rows: list[tuple[str, ...]]) -> None:
    if rows:
        print_table(("picture", "predicted", "explained", "method", "layer", "overlay"), rows)
    print_skipped(results["skipped"], len(results["skipped"]) + len(results["pictures"]))
    if rows:
        print(f"layer: {results['about']['layer']}")
    print(f"report: {results['report']}")
