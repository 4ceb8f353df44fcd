import re

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from grading.shims import SHIMS

X, LINEAR = torch.ones(4, 2), nn.Linear(2, 1)


@pytest.mark.parametrize(
    "call, needs_shim",
    [
        (lambda: F.binary_cross_entropy(torch.sigmoid(LINEAR(X)), torch.full((4, 1), 3.0)), True),
        (lambda: F.binary_cross_entropy(LINEAR(X) + 9, torch.ones(4, 1)), False),
    ],
)
def test_a_shim_forgives_the_targets_and_not_the_probabilities(call, needs_shim):
    with pytest.raises(RuntimeError) as error:
        call()
    applies = any(re.search(pattern, str(error.value)) for _, pattern, _ in SHIMS)
    assert applies == needs_shim
