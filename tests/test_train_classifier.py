"""Training the classifier: from training images only, into both of its files."""

import json
from types import SimpleNamespace

import torch

from figures import train_classifier
from harness import classifier, sample_quality


def images_of(arrays, key, n):
    return torch.from_numpy(arrays[key][:n]).flatten(1).float() / 255


def test_training_learns_digits(arrays, monkeypatch):
    """From 1,000 images, far above chance."""
    monkeypatch.setattr(train_classifier, "BATCH_SIZE", 50)
    labels = torch.from_numpy(arrays["y_train"][:1000]).long()
    model = train_classifier.train(images_of(arrays, "x_train", 1000), labels, n_epochs=2)
    test_labels = torch.from_numpy(arrays["y_test"][:500])
    assert not model.training
    assert classifier.accuracy(model, images_of(arrays, "x_test", 500), test_labels) > 0.8


def test_the_trainer_sees_training_images_only_and_writes_both_files(tmp_path, monkeypatch):
    torch.manual_seed(0)
    seen, model = [], classifier.Classifier().eval()
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path / "classifier.npz")
    monkeypatch.setattr(classifier, "RECORD", tmp_path / "classifier.json")
    monkeypatch.setattr(train_classifier, "N_TRAIN", 50)
    images, labels = torch.rand(60, 784), torch.arange(60) % 10
    few = images, labels, torch.rand(20, 784), labels[:20]
    monkeypatch.setattr(train_classifier, "labelled_images", lambda: few)
    monkeypatch.setattr(train_classifier, "train", lambda *data: seen.append(data) or model)
    monkeypatch.setattr(sample_quality, "real_images", lambda kind: (kind,))
    monkeypatch.setattr(sample_quality, "floors", lambda model, kind: {"of": kind})
    train_classifier.main(SimpleNamespace(keep_weights=False))
    ((x, y),) = seen
    assert torch.equal(x, images[:50]) and torch.equal(y, labels[:50])
    loaded = classifier.load_classifier(path=classifier.WEIGHTS)
    assert torch.equal(loaded.output.weight, model.output.weight.half().float())
    record = json.loads(classifier.RECORD.read_bytes())
    assert record["floors"] == {kind: {"of": kind} for kind in sample_quality.PIXELS}
    assert record["validation_accuracy"] == classifier.accuracy(loaded, images[50:], labels[50:])
    assert record["test_accuracy"] == classifier.accuracy(loaded, *few[2:])
    assert "python -m figures.train_classifier" in record["command"]

    classifier.RECORD.write_text(json.dumps(record | {"test_accuracy": 0.0, "torch": "another"}))
    train_classifier.main(SimpleNamespace(keep_weights=True))
    assert len(seen) == 1
    assert json.loads(classifier.RECORD.read_bytes()) == record | {"torch": "another"}
