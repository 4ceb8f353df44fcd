"""The command line of the page: see the package's docstring."""

import sys
from argparse import Namespace
from pathlib import Path

from figures.explorer import models, page
from figures.runs import find_runs
from harness import cli
from harness.errors import UserError
from harness.files import write_whole


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = cli.ArgumentParser(
        "Write one HTML file to play with the trained models: VAEs with --zdim 20 and 2, a GAN, "
        f"and a flow with --n_hidden of at most {models.MAX_FLOW_WIDTH}.",
        prog="python -m figures.explorer",
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
    runs, messages = find_runs(base)
    for message in messages:
        print(message, file=sys.stderr)
    found, missing = models.find_models(runs)
    if not found:
        raise UserError(
            f"no finished run under {base} that the page can show; make one, with "
            f"{models.KINDS['vae2'].command}, say, or name another folder with --runs"
        )
    for name, (reason, command) in missing.items():
        print(f"{models.KINDS[name].title}: {reason}; {command} makes one", file=sys.stderr)
    text = page.build(found, missing).encode()
    write_whole(out, lambda file: file.write(text))
    folders = ", ".join(str(trained.run.folder) for trained in found.values())
    print(f"{out}: {len(text) / 1e6:.1f} MB, from {folders}")


if __name__ == "__main__":
    cli.run_script(main, parse_args)
