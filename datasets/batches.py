"""Batches that live on the device, and the random changes made to them.

MNIST fits in any memory, so a split is one uint8 tensor on the device. An epoch is a permutation
drawn there and an index per batch: no DataLoader, no worker processes, no PIL.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F


class Batches:
    """One split of a data set: an iterable of float batches [<= batch_size, n_pixels].

    Args:
        images: uint8 tensor [n, n_pixels] on the device of the batches.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        to_input: maps a uint8 batch to the float batch the model sees. It runs once per batch, so
            what it draws at random is new in every epoch.
        shuffle: draw a new order at the start of every epoch from the device's default generator.
        image_shape: (height, width) of the images.
    """

    def __init__(
        self,
        images: torch.Tensor,
        batch_size: int,
        to_input: Callable[[torch.Tensor], torch.Tensor],
        shuffle: bool = False,
        image_shape: tuple[int, int] = (28, 28),
    ):
        self.images = images
        self.batch_size = batch_size
        self.to_input = to_input
        self.shuffle = shuffle
        self.image_shape = image_shape

    @property
    def n_images(self) -> int:
        """Images in the split."""
        return len(self.images)

    def __len__(self) -> int:
        return -(-self.n_images // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        device = self.images.device
        order = torch.randperm(self.n_images, device=device) if self.shuffle else None
        for start in range(0, self.n_images, self.batch_size):
            rows = slice(start, start + self.batch_size)
            if order is None:
                yield self.to_input(self.images[rows])
            else:
                yield self.to_input(self.images.index_select(0, order[rows]))


class Stream:
    """An endless iterable of grey batches [batch_size, n_pixels], reshuffled after every pass.

    No batch is short: a batch may take the last images of one pass and the first of the next, so
    that n passes make n * n_images / batch_size batches.

    Args:
        images: uint8 tensor [n, n_pixels].
        batch_size: images per batch.
    """

    def __init__(self, images: torch.Tensor, batch_size: int):
        self.images = images
        self.batch_size = batch_size
        # What is left of this pass.
        self.order = torch.empty(0, dtype=torch.int64, device=images.device)

    @property
    def n_images(self) -> int:
        """Images in a pass."""
        return len(self.images)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        while len(self.order) < self.batch_size:
            new_pass = torch.randperm(self.n_images, device=self.images.device)
            self.order = torch.cat([self.order, new_pass])
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return self.images.index_select(0, rows).float()

    def state_dict(self) -> dict:
        """The order of the images left in this pass."""
        return {"order": self.order.clone()}  # without the storage of the whole pass

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.order = state["order"].to(self.images.device)


def bernoulli_draw(images: torch.Tensor) -> torch.Tensor:
    """Draw 0 or 1 with the pixels' intensities as probabilities: uint8 [n, n_pixels] -> float."""
    return (255 * torch.rand(images.shape, device=images.device) < images).float()


def random_shift(
    images: torch.Tensor, max_shift: int = 1, image_shape: tuple[int, int] = (28, 28)
) -> torch.Tensor:
    """Shift each image [n, n_pixels] by -max_shift..max_shift whole pixels along each axis.

    The edge that an image leaves becomes black: what moves out on one side does not return on the
    other.
    """
    n, (height, width) = len(images), image_shape
    padded_width = width + 2 * max_shift
    padded = F.pad(images.view(n, height, width), 4 * [max_shift]).view(n, -1)
    row, column = torch.randint(2 * max_shift + 1, (2, n, 1), device=images.device)
    rows, columns = (torch.arange(side, device=images.device) for side in image_shape)
    window = (rows[:, None] * padded_width + columns).view(1, -1)
    return padded.gather(1, window + row * padded_width + column)
