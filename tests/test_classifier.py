"""The classifier: its files, and what it computes."""

import shutil

import numpy as np
import pytest
import torch
from torch.backends import cudnn

from harness import classifier
from harness.errors import UserError


def images_of(arrays, key, n):
    return torch.from_numpy(arrays[key][:n]).flatten(1).float() / 255


@pytest.fixture
def copy(tmp_path):
    """A copy of the classifier's two files: the path of its weights."""
    for path in (classifier.WEIGHTS, classifier.RECORD):
        shutil.copy(path, tmp_path)
    return tmp_path / classifier.WEIGHTS.name


@pytest.mark.thorough
def test_the_shipped_weights_have_the_recorded_accuracy(arrays):
    model = classifier.load_classifier()
    images = images_of(arrays, "x_test", None)
    correct = [
        (model(rows).argmax(dim=1).numpy() == labels).sum()
        for rows, labels in zip(images.split(500), np.split(arrays["y_test"], 20))
    ]
    recorded = classifier.read_record()["test_accuracy"]
    assert recorded >= 0.993
    # Another processor's rounding may decide about an image between two classes.
    assert sum(correct) / 10_000 == pytest.approx(recorded, abs=2e-4)


def test_the_weights_are_small_and_float16_and_no_pickle():
    assert classifier.WEIGHTS.stat().st_size <= 1_000_000
    with np.load(classifier.WEIGHTS, allow_pickle=False) as weights:
        assert {weights[name].dtype for name in weights} == {np.dtype(np.float16)}


def test_loaded_weights_are_the_file_s_in_float32_and_evaluation_mode():
    model = classifier.load_classifier()
    assert not any(module.training for module in model.modules())
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    with np.load(classifier.WEIGHTS) as weights:
        assert set(weights) == set(model.state_dict())
        for name, weight in model.state_dict().items():
            assert np.array_equal(weight.numpy(), weights[name].astype(np.float32))


def test_packed_weights_are_rounded_to_float16_and_always_the_same_bytes():
    torch.manual_seed(0)
    model = classifier.Classifier()
    packed = classifier.pack(model)
    assert packed == classifier.pack(model)
    state = classifier.unpack(packed).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight.half().float())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    ],
)
def test_damaged_weights_are_refused_in_one_line(copy, damage):
    classifier.load_classifier(path=copy)
    copy.write_bytes(damage(copy.read_bytes()))
    with pytest.raises(UserError, match=r"classifier\.npz is missing or damaged") as refused:
        classifier.load_classifier(path=copy)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"sha256": "0"}', b"\xff", None])
def test_a_damaged_record_is_refused(copy, content):
    record = copy.with_suffix(".json")
    if content is None:
        record.unlink()
    else:
        record.write_bytes(content)
    with pytest.raises(UserError, match=r"classifier\.json is missing or damaged"):
        classifier.load_classifier(path=copy)


def test_missing_weights_are_refused(copy):
    copy.unlink()
    with pytest.raises(UserError, match=r"classifier\.npz is missing or damaged"):
        classifier.load_classifier(path=copy)


def test_features_are_what_the_logits_are_made_of(arrays, monkeypatch):
    monkeypatch.setattr(classifier, "ROWS", 7)  # several chunks, a short one at the end
    model, images = classifier.load_classifier(), images_of(arrays, "x_test", 30)
    features, classes = classifier.features_and_classes(model, images)
    logits = model(images)
    assert features.shape == (30, 128) and torch.equal(classes, logits.argmax(dim=1))
    by_hand = features @ model.output.weight.T + model.output.bias
    assert torch.allclose(by_hand, logits, atol=1e-4)


def test_accuracy_by_hand():
    class FirstPixels(classifier.Classifier):
        def __init__(self):
            super().__init__()
            self.features, self.output = torch.nn.Identity(), torch.nn.Identity()

    images = torch.eye(4)
    assert classifier.accuracy(FirstPixels(), images, torch.tensor([0, 1, 2, 0])) == 0.75


def test_features_are_computed_in_full_precision_by_a_deterministic_algorithm():
    def settings():
        return cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    class Recorder(classifier.Classifier):
        def __init__(self):
            super().__init__()
            self.features.register_forward_hook(lambda *_: seen.append(settings()))

    before, seen = settings(), []
    classifier.features_and_classes(Recorder().eval(), torch.rand(3, 784))
    assert seen == [(False, True, False)]
    assert settings() == before != seen[0]
