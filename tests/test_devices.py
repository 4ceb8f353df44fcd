"""Choosing a device, and random numbers that don't disturb a run."""

import subprocess
import sys

import pytest
import torch

from harness import devices
from harness.devices import RandomState, device_of, select_device, separate_random_numbers
from harness.errors import UserError
from tests.conftest import ROOT

CPU = torch.device("cpu")


def test_separate_random_numbers_leave_the_stream_alone():
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    first = torch.rand(2)
    with separate_random_numbers(7):
        inside = torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    with separate_random_numbers(7):
        assert torch.equal(torch.rand(2), inside)


def test_separate_random_numbers_seed_no_device_that_has_not_started(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", asked.append)
    with separate_random_numbers(7):
        pass
    assert asked == []


def test_separate_random_numbers_end_with_an_error_too():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), separate_random_numbers(7):
        torch.rand(2)
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_state_is_restored_and_other_devices_are_ignored():
    random = RandomState(CPU)
    state = random.state_dict()
    expected = torch.rand(3)
    random.load_state_dict(state | {"cuda": None})  # of a run on another device
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_refused_with_one_that_is_there():
    with pytest.raises(UserError, match="--device cuda: .* use --device"):
        select_device("cuda")


@pytest.mark.parametrize(
    "cuda, mps, expected",
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_fastest_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert select_device("auto") == torch.device(expected)
    assert torch.get_float32_matmul_precision() == "highest"


def test_tf32_ends_with_its_block_also_by_an_error():
    with pytest.raises(KeyboardInterrupt), devices.tf32():
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyboardInterrupt
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_device_of_a_module_is_that_of_its_parameters():
    assert device_of(torch.nn.Linear(1, 1, device="meta")) == torch.device("meta")


@pytest.mark.thorough
def test_a_cpu_takes_denormal_numbers_for_zero_in_all_its_threads():
    lines = (
        "import torch, harness.devices",
        "torch.set_num_threads(2)",
        "harness.devices.select_device('cpu')",
        "print((torch.full((1_000_000,), 1e-39) * 0.5).count_nonzero().item())",
    )
    command = [sys.executable, "-c", "; ".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
