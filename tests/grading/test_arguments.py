"""A submission that requires command-line arguments is judged as if they had been typed."""

import argparse
from pathlib import Path

import pytest

from grading import arguments
from grading.grader import judge_file
from tests.grading.conftest import METHODS_VAE
from tests.grading.test_running import GAN

PARSER = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--zdim", required=True, type=int)
ARGS = parser.parse_args()
"""
AT_TOP = PARSER + METHODS_VAE.replace("from __future__ import annotations\n", "").replace(
    " -> tuple[Tensor, Tensor]", ""
).replace("z_dim=6", "z_dim=ARGS.zdim")
GAN_AT_TOP = (
    PARSER
    + GAN.format(name="train", last=99).replace("100", "ARGS.zdim").replace("64)", "2 * 32)")
    + """

def main():
    g, d = Generator(), Discriminator()
    data = [(2 * torch.rand(32, 784) - 1, 0) for _ in range(20)]
    train(data, d, g, *(torch.optim.Adam(net.parameters()) for net in (g, d)))
"""
)


@pytest.fixture
def parser(monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", arguments.parse_filled)
    monkeypatch.setattr("sys.argv", ["script.py"])
    return argparse.ArgumentParser()


@pytest.mark.parametrize(
    "flags, options, value",
    [
        (["--zdim"], {"type": int}, 20),
        (["--z-dim"], {"type": int}, 20),
        (["-z", "--latent_dim"], {}, "20"),
        (["--lr"], {"type": float}, 1e-3),
        (["--batch_size"], {"type": int, "choices": [16, 32]}, 16),
        (["--mode"], {"choices": ["test", "train"]}, "train"),
        (["--hidden"], {"type": int, "nargs": "+"}, [500]),
        (["--betas"], {"type": float, "nargs": 2}, [1.0, 1.0]),
        (["--out_dir"], {"type": Path}, Path("out")),
        (["--anything"], {"type": int}, 1),
        (["--verbose"], {"action": "store_true"}, True),
        (["zdim"], {"type": int}, 20),
    ],
)
def test_required_arguments_have_usual_values(parser, flags, options, value):
    required = {"required": True} if flags[0].startswith("-") else {}
    action = parser.add_argument(*flags, **options, **required)
    parser.add_argument("--epochs", type=int, default=3)
    for parse in (parser.parse_args, lambda: parser.parse_known_args()[0]):
        assert vars(parse()) == {action.dest: value, "epochs": 3}


def test_required_commands_and_groups(parser):
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--vae", action="store_true")
    group.add_argument("--gan", action="store_true")
    parser.add_argument("data")
    command = parser.add_subparsers(dest="command", required=True).add_parser("train")
    command.add_argument("--zdim", type=int, required=True)
    parsed = vars(parser.parse_args())
    assert parsed == {"vae": True, "gan": False, "data": "mnist", "command": "train", "zdim": 20}


@pytest.mark.parametrize("required, value", [("True", 20), ("False", None)])
def test_a_parser_that_only_main_makes(settings_of, required, value):
    source = f"def main():\n    p.add_argument('--zdim', type=int, required={required})\n"
    assert settings_of(source).zdim == value


def test_what_is_typed_is_not_changed(parser):
    parser.add_argument("--zdim", type=int, required=True)
    assert parser.parse_args(["--zdim", "3"]).zdim == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--zdim", "three"])


@pytest.mark.parametrize("model, source", [("vae", AT_TOP), ("gan", GAN_AT_TOP)])
def test_arguments_that_the_file_requires_at_its_top(sandbox, tmp_path, model, source):
    path = tmp_path / f"{model}.py"
    path.write_text(source)
    result = judge_file(sandbox, model, path, training=False)
    assert result.is_judged, result.reason
    assert not [f.line() for f in result.findings if f.status == "wrong"]
