"""A moving average of a model's weights."""

import copy

import torch.nn as nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of a model's parameters, for evaluation.

    A running form of iterate averaging (Polyak & Juditsky, SIAM J. Control 1992). The decay at
    step t is min(decay, (1 + t) / (10 + t)), so that the first, useless weights fade quickly.
    Buffers, such as the statistics of batch normalisation, are copied, not averaged. `model` is the
    averaged model; before the first update it is the model in training.

    Args:
        model: the model in training.
        decay: per step. With 0 there is no average, and `model` stays the model in training.
        every: steps between updates. Averaging every tenth step is as good, and nearly free.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 10):
        self.decay = decay
        self.every = every
        self.n_steps = 0
        self._training_model = model
        self._average = copy.deepcopy(model).eval() if decay else model

    @property
    def model(self) -> nn.Module:
        """The model to evaluate."""
        return self._average if self.n_steps >= self.every else self._training_model

    def update(self) -> None:
        """Count one optimiser step; average the weights if this step is due."""
        self.n_steps += 1
        if self.decay and self.n_steps % self.every == 0:
            decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps)) ** self.every
            average = get_ema_multi_avg_fn(decay)
            average(list(self._average.parameters()), list(self._training_model.parameters()), None)
            for mine, newest in zip(self._average.buffers(), self._training_model.buffers()):
                mine.copy_(newest)

    def state_dict(self) -> dict:
        """The averaged weights and the number of steps."""
        return {"model": self._average.state_dict(), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self._average.load_state_dict(state["model"])
        self.n_steps = state["n_steps"]
