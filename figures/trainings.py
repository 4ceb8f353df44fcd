"""Train what the gallery is missing, each script as a process of its own, under one progress line."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import runs
import training
from datasets import SHAPES
from figures.gallery import KINDS, command_of, full_length, is_of_kind, read_run
from runs import UserError

ROOT = Path(__file__).parent.parent
N_IMAGES = SHAPES['x_train'][0]  # that an epoch of the GAN has


class Job:
    """A script at work in a run folder; what it prints is kept in a file beside that."""

    def __init__(self, name, folder, flags):
        self.name, self.folder = name, folder
        self.minutes = KINDS[name].minutes
        self.log = folder.with_suffix('.log')
        with open(self.log, 'w') as output:
            self.process = subprocess.Popen([sys.executable, str(ROOT / KINDS[name].script), *flags], stdout=output,
                                            stderr=subprocess.STDOUT)

    def share(self):
        """How much of it is done, by its metrics: 0 to 1."""
        with contextlib.suppress(UserError):
            run = read_run(self.folder)
            epochs = run.count if run.counter == 'epoch' else run.count * run.args.batch_size / N_IMAGES
            return min(1.0, epochs / run.length)
        return 0.0

    def finished(self):
        """Whether it has ended well.

        Raises:
            UserError: it has failed; the message is the last line it printed.
        """
        status = self.process.poll()
        if status:
            last = self.log.read_text(errors='replace').replace('\r', '\n').strip().splitlines() or ['it printed nothing']
            raise UserError(f'training {self.name} failed: {last[-1]}')
        return status == 0


def train(names, found, base, quick, device, jobs):
    """Train one run of each named kind in the folder `base`, `jobs` at a time; an unfinished run of a kind goes on.

    Raises:
        UserError: a training has failed. The others are stopped; the next call resumes them.
    """
    base = Path(base)
    base.mkdir(parents=True, exist_ok=True)
    on_device = [] if device == 'auto' else ['--device', device]
    waiting, active, done = list(names), [], 0.0
    with training.progress_bar(sum(KINDS[name].minutes for name in names)) as bar:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    name = waiting.pop(0)
                    folder, flags = _start_or_resume(name, found, base, quick)
                    active.append(Job(name, folder, [*flags, *on_device]))
                time.sleep(0.2)
                for job in [job for job in active if job.finished()]:
                    active.remove(job)
                    done += job.minutes
                shares = [(job, job.share()) for job in active]
                bar.set_description(', '.join(f'{job.name} {share:.0%}' for job, share in shares), refresh=False)
                bar.update(done + sum(job.minutes * share for job, share in shares) - bar.n)
        finally:
            for job in active:
                job.process.terminate()
            for job in active:
                job.process.wait()


def _start_or_resume(name, found, base, quick):
    """(run folder, flags) of the training of this kind that is to be done."""
    unfinished = [run for run in found if not run.finished and is_of_kind(run, KINDS[name])
                  and run.length == full_length(name, quick) and run.config]
    if unfinished:
        return unfinished[-1].folder, ['--resume', str(unfinished[-1].folder)]
    folder = next(folder for folder in runs.candidates(base / f'{name}-seed0') if not folder.exists())
    return folder, [*command_of(name, quick)[2:], '--out', str(folder)]
