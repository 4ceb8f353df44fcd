"""Every figure of the report and the graded table, from finished runs.

    python -m figures             draw all figures and write figures/README.md, the gallery
    python -m figures --train     first train whatever is missing
    python -m figures --check     print the graded table of every run; exit status 0 only if nothing falls short
"""

import sys
from pathlib import Path

import runs
import training
from figures import gallery, trainings
from runs import UserError

HERE = Path(__file__).parent


def parse_args(argv=None):
    parser = training.ArgumentParser(__doc__.splitlines()[0], prog='python -m figures')
    parser.add_optional_argument('--runs', metavar='DIR', help='the folder that holds the run folders (default: runs, '
                        'with --quick runs/quick)')
    parser.add_optional_argument('--out', metavar='DIR', help='the folder to write README.md and report/ into (default: figures, '
                        'with --quick runs/quick/figures)')
    for name, kind in gallery.KINDS.items():
        parser.add_optional_argument(f'--{name}', metavar='RUN', help=f'draw this run, not the newest: {kind.title}')
    parser.add_argument('--train', action='store_true', help='first train what is missing, or resume it')
    parser.add_argument('--quick', action='store_true', help='a small fraction of the length, and so on every picture')
    parser.add_optional_argument('--jobs', type=training.number(int, at_least=1), metavar='N', help='trainings to run side by '
                                 'side (default: all on CUDA, where one leaves most of the device idle, otherwise 1)')
    parser.add_argument('--device', choices=('auto', 'cuda', 'mps', 'cpu'), default='auto', help='where to train')
    parser.add_argument('--check', action='store_true', help='grade every run, draw nothing')
    args = parser.parse_args(argv)
    if not args.train and (args.jobs is not None or args.device != 'auto'):
        parser.error('--jobs and --device are of trainings: they need --train')
    args.runs = Path(args.runs or ('runs/quick' if args.quick else 'runs'))
    args.out = Path(args.out or (args.runs / 'figures' if args.quick else HERE))
    return args


def chosen_run(name, folder):
    """The run in `folder`, which must be a finished one of that kind."""
    run, kind = gallery.read_run(folder), gallery.KINDS[name]
    if run.script is not gallery.SCRIPTS[kind.script]:
        raise UserError(f'--{name} {folder}: a run of {run.script.__name__}.py, not of {kind.script}')
    for setting, value in kind.settings.items():
        if vars(run.args)[setting] != value:
            raise UserError(f'--{name} {folder}: its {setting} is {vars(run.args)[setting]}, not {value}')
    if not run.finished:
        raise UserError(f'--{name}: {gallery.unfinished_message(run)}')
    return run


def check(found, messages):
    """Print the graded table of every run; returns the exit status."""
    verdicts = []
    for run in found:
        print(f'{run.folder}: {run.script.__name__}.py, seed {run.args.seed}, {run.count:,} '
              f'{"batches" if run.counter == "batch" else "epochs"}{"" if run.finished else ", unfinished"}')
        graded = run.graded()
        print(runs.graded_table(graded, run.counter) + '\n')
        verdicts += [row['verdict'] for row in graded]
    for message in messages:
        print(message, file=sys.stderr)
    counts = {verdict: verdicts.count(verdict) for verdict in ('pass', 'falls short', 'not reached', 'not comparable')}
    print(', '.join(f'{verdict}: {count}' for verdict, count in counts.items()))
    if not counts['pass'] + counts['falls short']:
        raise UserError('nothing could be graded')
    return 1 if counts['falls short'] or messages else 0


def main(args):
    chosen = {name: [chosen_run(name, vars(args)[name])] for name in gallery.KINDS if vars(args)[name] is not None}
    if not args.runs.is_dir() and not args.train and not chosen:
        raise UserError(f'there is no folder {args.runs}: name the one that holds the run folders with --runs')
    found, messages = gallery.find_runs(args.runs)
    if args.check and chosen:
        sys.exit(check([run for group in chosen.values() for run in group], []))
    if args.check:
        sys.exit(check(found, messages))

    def groups():
        return {name: chosen.get(name) or gallery.newest_of_kind(found, name) for name in gallery.KINDS}

    wanted = [name for name in gallery.KINDS if name not in gallery.OPTIONAL_KINDS]
    if args.train:
        short = [name for name in wanted if name not in chosen and not
                 any(run.length >= gallery.full_length(name, args.quick) for run in groups()[name][:1])]
        on_cuda = training.select_device(args.device).type == 'cuda'
        trainings.train(short, found, args.runs, args.quick, args.device, args.jobs or (len(short) if on_cuda else 1))
        found, messages = gallery.find_runs(args.runs)
    for run in found:
        if not run.finished:
            messages.append(gallery.unfinished_message(run))
    if not any(groups().values()):
        raise UserError('; '.join([*messages, f'no finished run under {args.runs}; --train makes what is missing']))
    drawn, failed = gallery.draw_all(groups(), args.out, args.quick)
    missing = failed + [
        f'{", ".join(figure.name for figure in gallery.FIGURES if figure.kind == name)}: no finished run; make one with: '
        + ' '.join(gallery.command_of(name)) for name in wanted if not groups()[name]]
    gallery.write_readme(args.out, drawn, groups(), missing, args.quick)
    for message in messages + missing:
        print(message, file=sys.stderr)
    print(f'{len(drawn)} figures in {args.out / "report"}, the gallery in {args.out / "README.md"}')
    if missing:
        raise UserError(f'not all figures could be drawn: {len(missing)} reasons above')


if __name__ == '__main__':
    training.run_script(main, parse_args)
