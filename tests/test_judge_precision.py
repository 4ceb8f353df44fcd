"""The judge's features on CUDA: full float32 and a deterministic algorithm."""

import torch
from torch.backends import cudnn

from harness import judge


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
