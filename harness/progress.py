"""The progress bar of every long job."""

import sys

from tqdm import tqdm


def progress_bar(total: float, initial: float = 0, **options) -> tqdm:
    """A tqdm bar in any unit: live on a terminal, one line every 30 seconds in a log file."""
    return tqdm(
        total=total,
        initial=initial,
        mininterval=0.2 if sys.stderr.isatty() else 30,
        bar_format="{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]{postfix}",
        dynamic_ncols=True,
        **options,
    )
