"""The command line of the page: see the package's docstring."""

from dataclasses import dataclass
from pathlib import Path

from figures.explorer import models, page
from figures.runs import find_runs
from harness import cli
from harness.errors import UserError
from harness.escape import words
from harness.files import may_replace, write_whole


@dataclass
class Command:
    """Write one HTML file to play with the trained models.

    It shows VAEs with --zdim 20 and 2, a GAN, and a flow with --n_hidden of at most 320.

    Example: python -m figures.explorer --runs runs --out page.html
    """

    runs: Path = Path("runs")  # holds the run folders
    out: Path | None = None  # the page to write (None: explorer.html in --runs)


def parse(words: list[str] | None = None) -> Command:
    """The command line; None is sys.argv's."""
    return cli.parse(Command, words, "python -m figures.explorer")


def main(command: Command) -> None:
    """Write the page from the runs that are there; say what is missing.

    Raises:
        UserError: there is no folder of runs, no run in it that the page can show, or another file
            where the page goes.
    """
    base, out = command.runs, command.out or command.runs / "explorer.html"
    if not may_replace(out, page.START):
        raise UserError(f"{out} is there and is no page of this command: name another file")
    if not base.is_dir():
        raise UserError(f"there is no folder {base}: name the one of the run folders with --runs")
    runs, messages = find_runs(base)
    cli.complain(messages)
    found, missing = models.find_models(runs)
    if not found:
        raise UserError(
            f"no finished run under {base} that the page can show; make one, with "
            f"{models.WANTED['vae2'].command}, say, or name another folder with --runs"
        )
    cli.complain(
        f"{models.WANTED[name].title}: {reason}; {make} makes one"
        for name, (reason, make) in missing.items()
    )
    text = page.build(found, missing).encode()
    write_whole(out, lambda file: file.write(text))
    folders = ", ".join(str(trained.run.folder) for trained in found.values())
    print(words(f"{out}: {len(text) / 1e6:.1f} MB, from {folders}"))


if __name__ == "__main__":
    cli.run(main, parse)
