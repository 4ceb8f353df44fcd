import json
import shutil

import numpy as np
import pytest
import torch
from torch.backends import cudnn

from datasets import read_mnist
from harness import judge, sample_quality, train_judge
from harness.errors import UserError


@pytest.fixture(scope="module")
def arrays():
    return read_mnist()


def images_of(arrays, key, n):
    return torch.from_numpy(arrays[key][:n]).flatten(1).float() / 255


@pytest.fixture
def copy(tmp_path):
    """A copy of the judge's two files: the path of its weights."""
    for path in (judge.WEIGHTS, judge.RECORD):
        shutil.copy(path, tmp_path)
    return tmp_path / judge.WEIGHTS.name


def test_the_shipped_weights_have_the_recorded_accuracy(arrays):
    classifier = judge.load_classifier()
    images = images_of(arrays, "x_test", None)
    correct = [
        (classifier(rows).argmax(dim=1).numpy() == labels).sum()
        for rows, labels in zip(images.split(500), np.split(arrays["y_test"], 20))
    ]
    recorded = judge.read_record()["test_accuracy"]
    assert recorded >= 0.993
    # Another processor's rounding may decide about an image between two classes.
    assert sum(correct) / 10_000 == pytest.approx(recorded, abs=2e-4)


def test_the_weights_are_small_and_float16_and_no_pickle():
    assert judge.WEIGHTS.stat().st_size <= 1_000_000
    with np.load(judge.WEIGHTS, allow_pickle=False) as weights:
        assert {weights[name].dtype for name in weights} == {np.dtype(np.float16)}


def test_loaded_weights_are_the_file_s_in_float32_and_evaluation_mode():
    classifier = judge.load_classifier()
    assert not any(module.training for module in classifier.modules())
    assert all(weight.dtype == torch.float32 for weight in classifier.parameters())
    with np.load(judge.WEIGHTS) as weights:
        assert set(weights) == set(classifier.state_dict())
        for name, weight in classifier.state_dict().items():
            assert np.array_equal(weight.numpy(), weights[name].astype(np.float32))


def test_packed_weights_are_rounded_to_float16_and_always_the_same_bytes():
    torch.manual_seed(0)
    model = judge.Classifier()
    packed = judge.pack(model)
    assert packed == judge.pack(model)
    state = judge.unpack(packed).state_dict()
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
    judge.load_classifier(path=copy)
    copy.write_bytes(damage(copy.read_bytes()))
    with pytest.raises(UserError, match=r"judge\.npz is missing or damaged") as refused:
        judge.load_classifier(path=copy)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"sha256": "0"}', b"\xff", None])
def test_a_damaged_record_is_refused(copy, content):
    record = copy.with_suffix(".json")
    if content is None:
        record.unlink()
    else:
        record.write_bytes(content)
    with pytest.raises(UserError, match=r"judge\.json is missing or damaged"):
        judge.load_classifier(path=copy)


def test_missing_weights_are_refused(copy):
    copy.unlink()
    with pytest.raises(UserError, match=r"judge\.npz is missing or damaged"):
        judge.load_classifier(path=copy)


def test_features_are_what_the_logits_are_made_of(arrays, monkeypatch):
    monkeypatch.setattr(judge, "ROWS", 7)  # several chunks, a short one at the end
    classifier, images = judge.load_classifier(), images_of(arrays, "x_test", 30)
    features, classes = judge.features_and_classes(classifier, images)
    logits = classifier(images)
    assert features.shape == (30, 128) and torch.equal(classes, logits.argmax(dim=1))
    by_hand = features @ classifier.output.weight.T + classifier.output.bias
    assert torch.allclose(by_hand, logits, atol=1e-4)


def test_accuracy_by_hand():
    class FirstPixels(judge.Classifier):
        def __init__(self):
            super().__init__()
            self.features, self.output = torch.nn.Identity(), torch.nn.Identity()

    images = torch.eye(4)
    assert judge.accuracy(FirstPixels(), images, torch.tensor([0, 1, 2, 0])) == 0.75


def test_training_learns_digits(arrays, monkeypatch):
    """From 1,000 images, far above chance."""
    monkeypatch.setattr(train_judge, "BATCH_SIZE", 50)
    labels = torch.from_numpy(arrays["y_train"][:1000]).long()
    model = train_judge.train(images_of(arrays, "x_train", 1000), labels, n_epochs=2)
    test_labels = torch.from_numpy(arrays["y_test"][:500])
    assert not model.training
    assert judge.accuracy(model, images_of(arrays, "x_test", 500), test_labels) > 0.8


def test_the_trainer_sees_training_images_only_and_writes_both_files(tmp_path, monkeypatch):
    torch.manual_seed(0)
    seen, model = [], judge.Classifier().eval()
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "judge.npz")
    monkeypatch.setattr(judge, "RECORD", tmp_path / "judge.json")
    monkeypatch.setattr(train_judge, "N_TRAIN", 50)
    images, labels = torch.rand(60, 784), torch.arange(60) % 10
    few = images, labels, torch.rand(20, 784), labels[:20]
    monkeypatch.setattr(train_judge, "labelled_images", lambda: few)
    monkeypatch.setattr(train_judge, "train", lambda *data: seen.append(data) or model)
    monkeypatch.setattr(sample_quality, "real_images", lambda kind: (kind,))
    monkeypatch.setattr(sample_quality, "floors", lambda classifier, kind: {"of": kind})
    train_judge.main(train_judge.parse_args([]))
    ((x, y),) = seen
    assert torch.equal(x, images[:50]) and torch.equal(y, labels[:50])
    loaded = judge.load_classifier(path=judge.WEIGHTS)
    assert torch.equal(loaded.output.weight, model.output.weight.half().float())
    record = json.loads(judge.RECORD.read_bytes())
    assert record["floors"] == {kind: {"of": kind} for kind in sample_quality.KINDS}
    assert record["validation_accuracy"] == judge.accuracy(loaded, images[50:], labels[50:])
    assert record["test_accuracy"] == judge.accuracy(loaded, *few[2:])
    assert "python -m harness.train_judge" in record["command"]

    judge.RECORD.write_text(json.dumps(record | {"test_accuracy": 0.0, "torch": "another"}))
    train_judge.main(train_judge.parse_args(["--keep_weights"]))
    assert len(seen) == 1
    assert json.loads(judge.RECORD.read_bytes()) == record | {"torch": "another"}


def test_features_are_computed_in_full_precision_by_a_deterministic_algorithm():
    def settings():
        return cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    class Recorder(judge.Classifier):
        def __init__(self):
            super().__init__()
            self.features.register_forward_hook(lambda *_: seen.append(settings()))

    before, seen = settings(), []
    judge.features_and_classes(Recorder().eval(), torch.rand(3, 784))
    assert seen == [(False, True, False)]
    assert settings() == before != seen[0]
