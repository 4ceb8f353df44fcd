import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread, imsave

import figures
from figures import gallery, trainings
from figures.__main__ import chosen_run, main, parse_args
from runs import UserError
from tests.conftest import ROOT

VALUES = {
    'a3_vae_template.py': {'train_neg_elbo_nats': 99.0, 'val_neg_elbo_nats': 100.0, 'val_recon_nats': 75.0,
                           'val_kl_nats': 25.0, 'val_report_nats': 79.0, 'seconds': 1.0},
    'a3_nf_template.py': {'train_bpd': 1.8, 'val_bpd': 1.79, 'val_bpd_shifted': 1.795, 'seconds': 1.0},
    'a3_gan_template.py': {'g_loss': 1.2, 'd_loss': 1.1, 'd_real': 0.6, 'd_fake': 0.3, 'seconds': 1.0},
}
RESULTS = {
    'a3_vae_template.py': {'test': {'neg_elbo_nats': 99.5}},
    'a3_nf_template.py': {'test': {'bpd': 1.78, 'bpd_shifted': 1.79}},
    'a3_gan_template.py': {'samples': {'mean_distance': 9.9, 'mean_distance_real': 10.2, 'repeats': 0}},
}
QUALITY = {key: 0.5 for _, value, floor, _ in gallery.MEASURES for key in (value, floor) if key} | {
    'n_samples': 10_000, 'classifier_accuracy': 0.99}
RESULTS['a3_vae_template.py'] |= {'quality_of_means': QUALITY, 'quality_of_draws': QUALITY,
                                  'likelihood': {'neg_log_px_nats': 95.0, 'gap_nats': 4.0}}
RESULTS['a3_nf_template.py'] |= {'quality': QUALITY, 'likelihood': {'bpd': 1.77, 'one_draw_bpd': 1.78, 'gap': 0.01}}
RESULTS['a3_gan_template.py'] |= {'quality': QUALITY | {'parzen_nats': 230.0, 'frechet_distance': 3.0, 'smallest_class': 0.08,
                                                        'largest_class': 0.12}}
PICTURES = {'a3_vae_template.py': ['samples_000', 'samples_001', 'samples_010', 'samples_100', 'manifold_100'],
            'a3_nf_template.py': ['samples_000', 'samples_001', 'samples_010', 'samples_100', 'samples_by_temperature'],
            'a3_gan_template.py': ['samples_000001', 'samples_010000', 'samples_099000', 'samples_187500',
                                   'interpolation_report', 'interpolation_pair', 'samples_fresh']}


def fake_run(folder, kind, *flags, started='2026', **values):
    """A finished full-length run of one kind, with the same metrics in every line."""
    script = gallery.KINDS[kind].script
    args = gallery.SCRIPTS[script].parse_args([*gallery.KINDS[kind].flags, *flags])
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps({'script': script, 'arguments': vars(args), 'started': started,
                                                    'device': 'an abacus'}))
    counts = (('batch', range(500, 187_501, 500)) if script == 'a3_gan_template.py'
              else ('epoch', range(1, gallery.length_of(args) + 1)))
    with open(folder / 'metrics.jsonl', 'w') as file:
        for count in counts[1]:
            file.write(json.dumps({counts[0]: count} | VALUES[script] | values) + '\n')
    (folder / 'result.json').write_text(json.dumps(RESULTS[script] | {'graded': [], 'finished': 'now'}))
    for n, name in enumerate(PICTURES[script]):
        imsave(folder / f'{name}.png', np.full((60, 300), n / 10), cmap='gray', vmin=0, vmax=1)
    return folder


@pytest.fixture
def full_report(tmp_path):
    for kind in gallery.KINDS:
        fake_run(tmp_path / 'runs' / kind, kind)
    return tmp_path / 'runs'


def draw(base, *flags):
    """Run `python -m figures` in this process; returns the gallery's text."""
    main(parse_args(['--runs', str(base), '--out', str(base.parent / 'out'), *flags]))
    return (base.parent / 'out' / 'README.md').read_text()


def test_every_figure_of_the_report(full_report):
    text = draw(full_report)
    report = full_report.parent / 'out' / 'report'
    numbers = {int(path.name[3:5]) for path in report.glob('*.png')}
    assert numbers == set(range(2, 19))
    for curves in ('fig02_elbo', 'fig08_gan_loss', 'fig14_bpd'):
        assert (report / f'{curves}.pdf').read_bytes().startswith(b'%PDF')
    for link in re.findall(r'\]\((.*?)\)', text):
        assert (report.parent / link).exists()
    for figure in gallery.FIGURES:
        caption = next(line for line in text.splitlines() if line.startswith(f'**Figure {figure.number}.** {figure.caption}'))
        assert f'run `{figure.kind}`, seed 0' in caption and 'an abacus' in caption and 'of 100' not in caption
    assert (report / 'fig10_gan_10000_batches.png').read_bytes() == (full_report / 'gan/samples_010000.png').read_bytes()
    assert 'Counted its way' in text and 'needs a run' not in text
    assert '| VAE, 20 latent dimensions | validation negative ELBO (nats) | epoch 40 | 100.000 | 100.600 | pass |' in text


def test_a_missing_run_is_named_with_its_command_and_the_rest_is_drawn(full_report, capsys):
    shutil.rmtree(full_report / 'nf')
    shutil.rmtree(full_report / 'gan_report')  # beside the report's seventeen: not missed
    with pytest.raises(UserError, match='1 reasons above'):
        draw(full_report)
    error = capsys.readouterr().err
    assert 'fig14_bpd, fig15_nf_before_training' in error and 'python a3_nf_template.py' in error and 'gan_report' not in error
    report = full_report.parent / 'out' / 'report'
    assert (report / 'fig08_gan_loss.png').exists() and not (report / 'fig14_bpd.png').exists()
    assert 'python a3_nf_template.py' in (report.parent / 'README.md').read_text()


def test_pictures_and_captions_of_a_short_run_say_so(full_report):
    shutil.rmtree(full_report / 'nf')
    fake_run(full_report / 'nf', 'nf', '--epochs', '40')
    (full_report / 'nf' / 'samples_100.png').rename(full_report / 'nf' / 'samples_040.png')
    text = draw(full_report)
    line = next(line for line in text.splitlines() if line.startswith('**Figure 18.'))
    assert '40 epochs' in line and '**40 of 100 epochs**' in line and 'shown after 40' in line
    picture = imread(full_report.parent / 'out' / 'report' / 'fig18_nf_100_epochs.png')
    original = imread(full_report / 'nf' / 'samples_040.png')
    assert picture.shape[0] > original.shape[0] and np.array_equal(picture[-60:], original)
    assert '| - | 1.804 | not reached |' in text


def test_the_newest_run_of_full_length_is_drawn(full_report):
    fake_run(full_report / 'new', 'nf', started='2027')
    fake_run(full_report / 'short', 'nf', '--epochs', '3', started='2028')
    fake_run(full_report / 'other_lr', 'nf', '--lr', '0.1', '--seed', '5', started='2025')
    found, _ = gallery.find_runs(full_report)
    assert [run.folder.name for run in gallery.newest_of_kind(found, 'nf')] == ['new']


def test_other_settings_are_not_the_report_s(full_report):
    fake_run(full_report / 'ablation', 'vae', '--binarize', 'threshold', started='2027')
    fake_run(full_report / 'small', 'nf', '--n_hidden', '64', started='2027')
    text = draw(full_report)
    assert 'run `vae`' in text and 'run `nf`' in text and 'run `ablation`' not in text and 'run `small`' not in text


def test_incomplete_metrics_and_results_cost_a_figure_and_not_the_gallery(full_report, capsys):
    lines = (full_report / 'nf' / 'metrics.jsonl').read_text().replace('"train_bpd": 1.8, ', '', 1)
    (full_report / 'nf' / 'metrics.jsonl').write_text(lines)
    result = json.loads((full_report / 'gan' / 'result.json').read_text())
    del result['quality']['frechet_distance']
    (full_report / 'gan' / 'result.json').write_text(json.dumps(result))
    with pytest.raises(UserError, match='1 reasons above'):
        draw(full_report)
    assert "fig14_bpd: " in (error := capsys.readouterr().err) and "has no 'train_bpd' in every line" in error
    assert '| | VAE, means | VAE, draws | flow |' in (full_report.parent / 'out' / 'README.md').read_text()


def test_nothing_is_written_over_where_there_is_no_run(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'README.md').write_text('mine')
    with pytest.raises(UserError, match='there is no folder .*typo'):
        draw(tmp_path / 'typo')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no finished run under .*empty'):
        draw(tmp_path / 'empty')
    assert (tmp_path / 'out' / 'README.md').read_text() == 'mine'


def test_seeds_are_aggregated(full_report):
    for seed, nats in ((1, 101.0), (2, 99.0)):
        fake_run(full_report / f'seed{seed}', 'vae', '--seed', str(seed), val_neg_elbo_nats=nats)
    text = draw(full_report)
    assert '| VAE, 20 latent dimensions, 3 seeds | validation negative ELBO (nats) | epoch 40 | 100.000 ± 1.000 ' in text
    assert '| 100.600 | falls short |' in text  # one of the three does
    assert '(run `vae`, seeds 0, 1, 2 (mean, band of one standard deviation), 100 epochs, an abacus)' in text


def test_the_models_samples_are_compared(full_report):
    text = draw(full_report)
    assert '| | VAE, means | VAE, draws | GAN | flow |' in text
    assert '| Fréchet distance (lower is better) | 0.50 (0.50) | 0.50 (0.50) | 3.00 (0.50) | 0.50 (0.50) |' in text
    assert 'a test accuracy of 99.00%' in text


def test_bands_are_one_standard_deviation(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr('matplotlib.axes.Axes.fill_between',
                        lambda self, x, low, high, **_: seen.append((np.asarray(x), low, high)))
    figures.save_curves(tmp_path / 'a.png', {'a': ('k', [1, 2], [[1.0, 2.0], [3.0, 2.0]]), 'b': ('r', [1, 2], [1.0, 1.0])},
                        'x', 'y')
    (x, low, high), = seen
    assert np.allclose(x, [1, 2]) and np.allclose(low, [2 - 2 ** 0.5, 2]) and np.allclose(high, [2 + 2 ** 0.5, 2])


def test_a_run_with_a_truncated_last_line_is_drawn_with_a_warning(full_report, capsys):
    with open(full_report / 'vae' / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": 101, "val_n')
    assert 'run `vae`' in draw(full_report)
    assert 'vae/metrics.jsonl: the last line is truncated, not used' in capsys.readouterr().err


def test_unfinished_foreign_and_damaged_runs_are_named(full_report, capsys):
    (full_report / 'nf' / 'result.json').unlink()
    (full_report / 'gan' / 'metrics.jsonl').write_text('{"batch": 500, "other": 1}\n')
    (full_report / 'vae' / 'metrics.jsonl').write_text('nonsense\n')
    (full_report / 'vae_report' / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='4 reasons above'):
        draw(full_report)
    error = capsys.readouterr().err
    for words in ('nf is unfinished (epoch 100); go on with: python a3_nf_template.py --resume', 'gan: metrics.jsonl holds no',
                  'vae/metrics.jsonl: line 1 is damaged', 'vae_report is not a run folder'):
        assert words in error


@pytest.mark.parametrize('name, folder, words', [
    ('nf', 'gan', '--nf .*gan: a run of a3_gan_template.py, not of a3_nf_template.py'),
    ('vae', 'manifold', '--vae .*manifold: its zdim is 2, not 20'),
    ('manifold', 'absent', 'absent is not a run folder'),
    ('gan', 'gan', r'--gan: .*gan is unfinished \(batch 187,500\)')])
def test_a_chosen_run_must_be_a_finished_one_of_its_kind(full_report, name, folder, words):
    (full_report / 'gan' / 'result.json').unlink()
    with pytest.raises(UserError, match=words):
        chosen_run(name, full_report / folder)
    assert chosen_run('vae', full_report / 'vae').folder.name == 'vae'


def check(base, capsys):
    with pytest.raises(SystemExit) as exit:
        main(parse_args(['--runs', str(base), '--check']))
    captured = capsys.readouterr()
    return exit.value.code, captured.out, captured.err


def test_check(full_report, capsys):
    before = sorted(full_report.parent.rglob('*'))
    status, text, _ = check(full_report, capsys)
    assert status == 0 and 'falls short: 0, not reached: 0' in text
    fake_run(full_report / 'bad', 'nf', val_bpd=1.9)
    status, text, _ = check(full_report, capsys)
    assert status == 1 and 'falls short: 4,' in text and f'{full_report / "bad"}: a3_nf_template.py, seed 0, 100 epochs' in text
    shutil.rmtree(full_report / 'bad')
    assert sorted(full_report.parent.rglob('*')) == before  # nothing is written


def test_check_grades_any_metrics_of_the_same_form(tmp_path, capsys):
    lines = [json.dumps({'epoch': epoch} | VALUES['a3_vae_template.py']) for epoch in range(1, 51)]
    (tmp_path / 'a_student' / 'vae').mkdir(parents=True)
    path = tmp_path / 'a_student' / 'vae' / 'metrics.jsonl'
    path.write_text('\n'.join(lines) + '\n')
    assert check(tmp_path, capsys)[0] == 0
    path.write_text('\n'.join(lines).replace('100.0', '103.5') + '\n')
    assert check(tmp_path, capsys)[0] == 1


def test_check_of_nothing_or_of_damaged_runs_does_not_pass(tmp_path, capsys):
    with pytest.raises(UserError, match='nothing could be graded'):
        main(parse_args(['--runs', str(tmp_path), '--check']))
    fake_run(tmp_path / 'good', 'vae')
    fake_run(tmp_path / 'bad', 'vae')
    (tmp_path / 'bad' / 'metrics.jsonl').write_text('nonsense\n')
    status, _, error = check(tmp_path, capsys)
    assert status == 1 and 'bad/metrics.jsonl: line 1 is damaged' in error


def test_a_failed_training_is_named(tmp_path, monkeypatch):
    quick = gallery.KINDS['vae']._replace(quick=('--epochs', '1', '--data_dir', 'absent'))
    monkeypatch.setitem(gallery.KINDS, 'vae', quick)
    with pytest.raises(UserError, match='training vae failed: a3_vae_template.py: error: no MNIST in absent'):
        trainings.train(['vae'], [], tmp_path, quick=True, device='cpu', jobs=1)


@pytest.mark.parametrize('cuda, flags, jobs', [(False, [], 1), (True, [], 5), (True, ['--device', 'cpu'], 1),
                                               (True, ['--jobs', '2'], 2)])
def test_on_cuda_all_trainings_run_side_by_side(tmp_path, monkeypatch, cuda, flags, jobs):
    monkeypatch.setattr('training.select_device', lambda name: torch.device('cuda' if cuda and name == 'auto' else 'cpu'))
    asked = []
    monkeypatch.setattr(trainings, 'train', lambda names, found, base, quick, device, jobs: asked.append((len(names), jobs)))
    with pytest.raises(UserError, match='no finished run'):
        main(parse_args(['--train', '--runs', str(tmp_path), *flags]))
    assert asked == [(5, jobs)]


@pytest.mark.parametrize('flags', [['--jobs', '2'], ['--device', 'cpu', '--check']])
def test_flags_of_trainings_need_one(flags):
    with pytest.raises(UserError, match='they need --train'):
        parse_args(flags)


def test_an_unfinished_training_goes_on(full_report):
    for name in ('nf', 'vae'):
        (full_report / name / 'result.json').unlink()
    found, _ = gallery.find_runs(full_report)
    assert trainings._start_or_resume('nf', found, full_report, False) == (
        full_report / 'nf', ['--resume', str(full_report / 'nf')])
    # Of another length, it is not the training that is missing.
    folder, flags = trainings._start_or_resume('vae', found, full_report, True)
    assert flags == ['--zdim', '20', *gallery.KINDS['vae'].quick, '--out', str(folder)] and not folder.exists()


def test_the_quick_report_from_nothing(tmp_path):
    """`python -m figures --train --quick` as a user runs it: every figure, each saying that it is of a quick run."""
    process = subprocess.run([sys.executable, '-m', 'figures', '--train', '--quick', '--device', 'cpu', '--runs', tmp_path / 'runs'],
                             cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert process.returncode == 0, process.stderr
    out = tmp_path / 'runs' / 'figures'
    text = (out / 'README.md').read_text()
    drawn = {path.stem for path in (out / 'report').glob('*.png')}
    assert drawn == {figure.name for figure in gallery.FIGURES if figure.kind not in gallery.OPTIONAL_KINDS}
    captions = [line for line in text.splitlines() if line.startswith('**Figure')]
    assert len(captions) == len(drawn) and all('**quick run: ' in caption for caption in captions)
    assert 'a quick run' in text.splitlines()[0]
    # What is there is not trained again.
    before = {path: os.stat(path).st_mtime for path in (tmp_path / 'runs').rglob('metrics.jsonl')}
    again = subprocess.run([sys.executable, '-m', 'figures', '--train', '--quick', '--runs', tmp_path / 'runs'],
                           cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and len(before) == 5, again.stderr
    assert {path: os.stat(path).st_mtime for path in (tmp_path / 'runs').rglob('metrics.jsonl')} == before


def test_quick_trainings_are_of_the_full_model():
    """A quick training has the settings of the full one, but for its length."""
    for name, kind in gallery.KINDS.items():
        full, quick = (gallery.SCRIPTS[kind.script].parse_args([*kind.flags, *more]) for more in ((), kind.quick))
        differing = {key for key in vars(full) if vars(full)[key] != vars(quick)[key]}
        assert differing - {'importance_samples', 'quality_samples'} in ({'epochs'}, {'n_epochs'}) and gallery.full_length(name, quick=True) <= 2
        assert quick.quality_samples == 0 and vars(quick).get('importance_samples', 0) < 10
