"""Our own scripts pass every check; with one fault each, the check meant for it finds it."""

import pytest

from gencheck.outcomes import ACCUSING
from grading.code_files import MODELS
from grading.grader import judge_file
from tests.conftest import ROOT
from tests.grading.mutants import MUTANTS, Mutant

QUICK = ("sigma for sigma squared", "smoothing of both sides")


def accusations(result):
    return {f.check: f for f in result.findings if f.status in ACCUSING}


def test_there_are_mutants_enough_and_their_patches_fit(tmp_path):
    assert len(MUTANTS) >= 30
    for mutant in MUTANTS:
        mutant.write(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("model", MODELS)
def test_our_script_passes(sandbox, model):
    result = judge_file(sandbox, model, ROOT / f"a3_{model}_template.py", training=False)
    assert result.is_judged, result.reason
    assert not accusations(result)
    assert not [f.line() for f in result.findings if f.status == "unjudged"]
    assert result.picture


def assert_found(mutant, sandbox, project):
    result = judge_file(sandbox, mutant.model, mutant.write(project), 300, training=False)
    assert not result.reason
    found = {f.check: f for f in result.findings}[mutant.check]
    assert found.status == mutant.status, found.line()
    assert mutant.words in found.measured
    assert accusations(result).keys() <= {mutant.check, *mutant.also}


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in QUICK], ids=lambda m: m.name)
def test_fault_is_found_by_its_check_and_no_other(sandbox, project, mutant):
    assert_found(mutant, sandbox, project)


@pytest.mark.thorough
def test_an_exit_in_sample_leaves_the_other_checks(sandbox, project):
    first = "z = torch.randn(n_samples, self.z_dim"
    mutant = Mutant("vae", "exit", first, f"raise SystemExit\n        {first}", "sample")
    result = judge_file(sandbox, "vae", mutant.write(project), 300, training=False)
    found = {f.check: f for f in result.findings}
    assert (found.pop("sample").measured, found["kl"].status) == ("it calls sys.exit", "pass")
    assert result.is_judged and not accusations(result)
    assert "unjudged" not in {f.status for f in found.values()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.name not in QUICK], ids=lambda m: m.name
)
def test_every_fault_is_found(sandbox, project, mutant):
    assert_found(mutant, sandbox, project)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize("model", MODELS)
def test_our_script_passes_with_other_draws(sandbox, model, seed):
    path = ROOT / f"a3_{model}_template.py"
    result = judge_file(sandbox, model, path, 300, training=seed <= 3, seed=seed)
    assert result.is_judged, result.reason
    assert not accusations(result)
