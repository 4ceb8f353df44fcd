"""The command line of the page: see the package's docstring."""

from dataclasses import dataclass
from pathlib import Path

from figures.explorer import models, page
from figures.runs import find_runs, read_run
from harness import cli
from harness.errors import UserError
from harness.escape import words
from harness.files import may_replace, write_whole


@dataclass
class Command:
    """Write one HTML file to play with the trained models.

    It shows VAEs with --zdim 20 and 2, a GAN, and a flow with --n_hidden of at most 320: the newest
    of --runs, or those that are named.

    Example: python -m figures.explorer --manifold runs/vae-z2-seed0 --out page.html
    """

    runs: Path = Path("runs")  # holds the run folders
    out: Path | None = None  # the page to write (None: explorer.html in --runs)
    vae: Path | None = None  # the run of a VAE with 20 latent dimensions
    manifold: Path | None = None  # the run of a VAE with 2 latent dimensions
    gan: Path | None = None  # the run of a GAN
    nf: Path | None = None  # the run of a flow


def parse(words: list[str] | None = None) -> Command:
    """The command line; None is sys.argv's."""
    return cli.parse(Command, words, "python -m figures.explorer")


def main(command: Command) -> None:
    """Write the page from the runs that are there; say what is missing.

    Raises:
        UserError: there is no folder of runs, no run that the page can show, with the reasons, or
            another file where the page goes.
    """
    base, out = command.runs, command.out or command.runs / "explorer.html"
    if not may_replace(out, page.START):
        raise UserError(f"{out} is there and is no page of this command: name another file")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; name another file with --out")
    named = {name: getattr(command, wanted.option) for name, wanted in models.WANTED.items()}
    chosen = {name: read_run(folder) for name, folder in named.items() if folder is not None}
    if not base.is_dir() and not chosen:
        raise UserError(f"there is no folder {base}: name the one of the run folders with --runs")
    runs, messages = find_runs(base) if base.is_dir() else ([], [])
    found, missing = models.find_models(runs, chosen)
    if not found:
        make = models.WANTED["vae2"].command
        reasons = [reason for reason, _ in missing.values() if reason not in messages]
        raise UserError(
            f"no run under {base} that the page can show: "
            f"{'; '.join(dict.fromkeys([*messages, *reasons]))}; make one, with {make}, say"
        )
    if not chosen:
        cli.complain(messages)
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
