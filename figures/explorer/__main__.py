"""The command line of the page: see the package's docstring."""

import sys
from argparse import Namespace
from pathlib import Path

from figures.explorer import models, page
from harness import cli
from harness.errors import UserError
from harness.files import write_whole


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = cli.ArgumentParser(
        "Write one HTML file to play with the trained models.", prog="python -m figures.explorer"
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="holds the run folders")
    parser.add_optional_argument(
        "--out", metavar="FILE", help="the page to write (default: explorer.html in --runs)"
    )
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    """Write the page from the runs that are there; say what is missing."""
    base = Path(args.runs)
    out = Path(args.out) if args.out else base / "explorer.html"
    if not base.is_dir():
        raise UserError(f"there is no folder {base}: name the one of the run folders with --runs")
    found, missing = models.find_models(base)
    for name, (reason, command) in missing.items():
        print(f"{models.KINDS[name].title}: {reason}; {command} makes one", file=sys.stderr)
    text = page.build(found, missing).encode()
    write_whole(out, lambda file: file.write(text))
    folders = ", ".join(str(trained.folder) for trained in found.values())
    print(f"{out}: {len(text) / 1e6:.1f} MB, from {folders}")


if __name__ == "__main__":
    cli.run_script(main, parse_args)
