import pytest

from grading.epoch_checks import validation_values


@pytest.mark.parametrize(
    "returned, values",
    [
        ((3.0, 2.0), {2.0}),  # train, validation
        ((3.0, 2.0, 9.0), {2.0}),  # and something else
        ((3.0, 0.5, 2.0, 0.25), {0.5, 2.0, 2.25}),  # either a value more, or terms of both sets
        ((3.0, [4.0, 2.0]), {4.0, 6.0}),  # a value and more, or its terms
        (({"recon": 2.5, "kl": 0.5}, {"recon": 4.0, "kl": 2.0}), {4.0, 6.0}),
        ({"train": 3.0, "val": 2.0}, {2.0}),
    ],
)
def test_where_the_validations_value_may_be(returned, values):
    assert {*validation_values(returned)} >= values
    assert 3.0 not in validation_values(returned)
