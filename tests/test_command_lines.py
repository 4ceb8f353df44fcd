"""The three scripts as a user runs them, at a small size, and what each writes."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import runs
from tests.conftest import ROOT

TINY = {
    'a3_vae_template.py': ['--epochs', '2', '--zdim', '2', '--hidden_dim', '8', '--batch_size', '2000',
                           '--importance_samples', '3', '--quality_samples', '0'],
    'a3_nf_template.py': ['--epochs', '2', '--n_flows', '1', '--n_hidden', '8', '--batch_size', '2000',
                          '--importance_samples', '2', '--quality_samples', '0'],
    'a3_gan_template.py': ['--n_epochs', '1', '--batch_size', '2048', '--save_interval', '10', '--quality_samples', '0'],
}


def run_script(name, *flags, device='cpu'):
    return subprocess.run([sys.executable, ROOT / name, *flags, '--device', device], capture_output=True, text=True,
                          timeout=300)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """{script: (completed process, run folder)} of one tiny run each."""
    runs = {}
    for name, flags in TINY.items():
        folder = tmp_path_factory.mktemp('runs') / 'run'
        runs[name] = run_script(name, *flags, '--out', str(folder)), folder
    return runs


@pytest.mark.parametrize('name', TINY)
def test_every_run_folder(finished, name):
    process, folder = finished[name]
    assert process.returncode == 0, process.stderr
    assert f'run folder: {folder}' in process.stdout and 'not' in process.stdout  # not comparable, not reached
    config = json.loads((folder / 'config.json').read_text())
    assert config['script'] == name and config['arguments']['device'] == 'cpu' and config['arguments']['out'] == str(folder)
    result = json.loads((folder / 'result.json').read_text())
    assert all(row.keys() == {'quantity', 'unit', 'at', 'value', 'reference', 'verdict'} for row in result['graded'])
    assert all(isinstance(row['at'], int) for row in result['graded'])
    assert {row['verdict'] for row in result['graded']} <= {'pass', 'falls short', 'not comparable', 'not reached'}
    torch.load(folder / 'checkpoint.pt', weights_only=True)
    for picture in folder.glob('*.png'):
        Image.open(picture).verify()
    assert not list(folder.glob('*.partial'))


def test_vae_files(finished):
    _, folder = finished['a3_vae_template.py']
    assert {path.name for path in folder.iterdir()} == {
        'config.json', 'metrics.jsonl', 'result.json', *runs.CHECKPOINTS, 'elbo.png', 'elbo.pdf',
        *(f'{kind}_{epoch:03d}.png' for kind in ('samples', 'manifold') for epoch in (0, 1, 2))}
    lines = runs.read_metrics(folder)
    assert [line['epoch'] for line in lines] == [1, 2]
    assert lines[0].keys() == {'epoch', 'train_neg_elbo_nats', 'val_neg_elbo_nats', 'val_recon_nats', 'val_kl_nats',
                               'val_report_nats', 'seconds'}
    for line in lines:
        assert line['val_neg_elbo_nats'] == pytest.approx(line['val_recon_nats'] + line['val_kl_nats'])
    assert lines[1]['train_neg_elbo_nats'] < lines[0]['train_neg_elbo_nats'] < 560
    assert json.loads((folder / 'result.json').read_text())['test'].keys() == {
        'neg_elbo_nats', 'recon_nats', 'kl_nats', 'report_nats'}


def test_nf_files(finished):
    _, folder = finished['a3_nf_template.py']
    assert {path.name for path in folder.iterdir()} == {
        'config.json', 'metrics.jsonl', 'result.json', *runs.CHECKPOINTS, 'bpd.png', 'bpd.pdf',
        'samples_by_temperature.png', *(f'samples_{epoch:03d}.png' for epoch in (0, 1, 2))}
    lines = runs.read_metrics(folder)
    assert [line['epoch'] for line in lines] == [1, 2]
    assert lines[0].keys() == {'epoch', 'train_bpd', 'val_bpd', 'val_bpd_shifted', 'seconds'}
    assert lines[1]['train_bpd'] < lines[0]['train_bpd'] < 27  # an untrained flow, the identity, has 27.7
    result = json.loads((folder / 'result.json').read_text())
    assert result['test'].keys() == {'bpd', 'bpd_shifted'}
    assert result['inverse_error']['pixels'] < 0.01


def test_gan_files(finished):
    _, folder = finished['a3_gan_template.py']
    assert {path.name for path in folder.iterdir()} == {
        'config.json', 'metrics.jsonl', 'result.json', *runs.CHECKPOINTS, 'loss.png', 'loss.pdf', 'samples_000001.png',
        'samples_000029.png', 'samples_fresh.png', 'interpolation_report.png', 'interpolation_pair.png'}
    lines = runs.read_metrics(folder)
    assert [line['batch'] for line in lines] == [10, 20, 29]
    assert lines[0].keys() == {'batch', 'g_loss', 'd_loss', 'd_real', 'd_fake', 'seconds'}


def test_the_same_seed_gives_the_same_numbers(finished, tmp_path):
    name = 'a3_vae_template.py'
    _, folder = finished[name]
    for seed, same in (('0', True), ('1', False)):
        process = run_script(name, *TINY[name], '--seed', seed, '--out', str(tmp_path / seed))
        assert process.returncode == 0, process.stderr
        again = [line | {'seconds': None} for line in runs.read_metrics(tmp_path / seed)]
        assert (again == [line | {'seconds': None} for line in runs.read_metrics(folder)]) == same


@pytest.mark.parametrize('name', TINY)
def test_evaluate(finished, tmp_path, name):
    """Evaluating a run anew gives what its end gave, and changes nothing else; with other draws it gives other bounds."""
    folder = tmp_path / 'run'
    shutil.copytree(finished[name][1], folder)
    before = json.loads((folder / 'result.json').read_text())
    metrics = (folder / 'metrics.jsonl').read_bytes()
    process = run_script(name, '--evaluate', folder)
    assert process.returncode == 0, process.stderr
    assert json.loads((folder / 'result.json').read_text()) | {'finished': None} == before | {'finished': None}
    assert (folder / 'metrics.jsonl').read_bytes() == metrics
    if 'gan' not in name:
        assert before['likelihood'] and run_script(name, '--evaluate', folder, '--importance_samples', '0').returncode == 0
        assert json.loads((folder / 'result.json').read_text())['likelihood'] == before['likelihood']
    for flags, words in ((['--seed', '3'], 'its --seed is 0, not 3'), (['--resume', folder], 'one at a time')):
        process = run_script(name, '--evaluate', folder, *flags)
        assert process.returncode == 2 and words in process.stderr
    (folder / 'result.json').unlink()
    process = run_script(name, '--evaluate', folder)
    assert process.returncode == 1 and 'is unfinished: go on with --resume' in process.stderr


def test_gan_generate(finished, tmp_path):
    _, folder = finished['a3_gan_template.py']
    process = run_script('a3_gan_template.py', '--generate', str(folder), '--n', '7')
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == str(folder / 'generated_n7_seed0.png')
    Image.open(folder / 'generated_n7_seed0.png').verify()
    (folder / 'generated_n7_seed0.png').unlink()


BAD = [
    ('a3_vae_template.py', ['--zdim', '0'], 2, '--zdim'),
    ('a3_vae_template.py', ['--epochs', '-1'], 2, '--epochs'),
    ('a3_vae_template.py', ['--device', 'tpu'], 2, '--device'),
    ('a3_vae_template.py', ['--out', str(ROOT / 'training.py' / 'run')], 1, 'cannot be made'),
    ('a3_vae_template.py', ['--binarize', 'larochelle'], 1, 'binarized_mnist_train.amat'),
    ('a3_vae_template.py', ['--data_dir', 'absent'], 1, 'no MNIST in absent'),
    ('a3_nf_template.py', ['--batch_size', '0'], 2, '--batch_size'),
    ('a3_nf_template.py', ['--max_norm', 'nan'], 2, '--max_norm'),
    ('a3_nf_template.py', ['--lr', '1e20', *TINY['a3_nf_template.py']], 1, 'is not finite at epoch 1'),
    ('a3_gan_template.py', ['--batch_size', '1'], 2, 'batch norm'),
    ('a3_gan_template.py', ['--batch_size', '60001', '--n_epochs', '1'], 1, 'fewer images'),
    ('a3_gan_template.py', ['--generate', 'absent'], 1, 'not a run folder'),
]


@pytest.mark.parametrize('name, flags, status, words', BAD, ids=[' '.join(flags[:2]) for _, flags, _, _ in BAD])
def test_bad_input_ends_in_one_line(tmp_path, name, flags, status, words):
    out = [] if '--out' in flags else ['--out', str(tmp_path / 'run')]
    process = run_script(name, *flags, *out)
    assert process.returncode == status
    line = re.sub(r'.*\r', '', process.stderr).strip()  # after the progress bar
    assert words in line and '\n' not in line.splitlines()[-1] and 'Traceback' not in process.stderr
    assert line.splitlines()[-1].startswith(f'{name}: error: ')


def test_a_taken_folder_is_not_written_over(finished, tmp_path):
    name = 'a3_nf_template.py'
    _, folder = finished[name]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = run_script(name, '--epochs', '1', *TINY[name][2:], '--out', str(folder))
    assert process.returncode == 0 and f'run folder: {folder}-2' in process.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_help_gives_the_defaults():
    process = run_script('a3_vae_template.py', '--help')
    assert process.returncode == 0
    for words in ('--zdim', 'default: 20', 'default: 100', '--binarize', '--protocol', '--ema_decay'):
        assert words in process.stdout
    assert 'None' not in process.stdout
