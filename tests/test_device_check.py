"""The check of a device passes on the CPU, and fails where the device computes something else."""

import json

import pytest
import torch

from tests import device_check


def test_the_quick_check_passes_on_the_cpu(tmp_path, capsys):
    file = tmp_path / "check.json"
    assert device_check.main(["--device", "cpu", "--quick", "--json", str(file)]) == 0
    lines = json.loads(file.read_text())["lines"]
    assert sum(bool(line["bar"]) for line in lines) == 9 and all(line["passed"] for line in lines)
    output = capsys.readouterr().out
    assert output.count(" pass\n") == 9 and "all pass on" in output


def test_a_device_with_a_wrong_exponential_fails(monkeypatch):
    exp = torch.Tensor.exp

    def wrong(tensor):
        return exp(tensor) * (1 + 1e-3 * (tensor.dtype == torch.float32))

    monkeypatch.setattr(torch.Tensor, "exp", wrong)
    failed = {line.check for line in device_check.check_steps(device_check.CPU) if not line.passed}
    assert failed and all(check.startswith("vae") for check in failed)


def test_a_check_that_raises_is_a_line_that_fails():
    def check(device):
        """Raise."""
        yield device_check.Line("first", 1.0)
        raise ValueError("no such operator\nand more")

    first, second = device_check.lines_of(check, device_check.CPU)
    assert first.passed and not second.passed
    assert (second.check, second.value) == ("Raise.", "ValueError: no such operator")


def test_other_noise_is_seen():
    one, same, other = (
        device_check.one_step("vae", device_check.CPU, torch.float32, seed) for seed in (0, 0, 1)
    )
    assert device_check.relative_error(one[1], same[1]) == 0
    assert device_check.relative_error(one[1], other[1]) > 0.1
    with device_check.SameNoise(torch.float32, seed=1):
        moved = torch.randn(3, device="cpu")
    with device_check.SameNoise(torch.float64, seed=1):
        assert torch.equal(torch.randn((3,)), moved.double())
        assert torch.randn_like(moved).dtype == torch.float64


@pytest.mark.slow
def test_the_whole_check_passes_on_the_cpu():
    assert device_check.main(["--device", "cpu"]) == 0
