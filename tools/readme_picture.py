"""Make docs/images/rocket.jpg from the files of `make demo`."""

from pathlib import Path

from PIL import Image

from torchpeek.render import mosaic

ROOT = Path(__file__).parent.parent


def main() -> None:
    tiles = {
        "the photograph: 35 % drilling platform, 18 % space shuttle": ROOT / "examples" / "images" / "rocket.jpg",
        "gradcam: drilling platform": ROOT / "demo" / "rocket" / "gradcam.540-drilling-platform.png",
        "gradcam: space shuttle": ROOT / "demo" / "rocket" / "gradcam.812-space-shuttle.png",
    }
    pictures = []
    for path in tiles.values():
        with Image.open(path) as opened:
            pictures.append(opened.convert("RGB"))
    mosaic(pictures, list(tiles), columns=3, width=400).save(ROOT / "docs" / "images" / "rocket.jpg", quality=88)


if __name__ == "__main__":
    main()
