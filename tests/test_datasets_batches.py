"""Batches: every image once an epoch, in random order, shifted without wrapping."""

import itertools

import pytest
import torch

from datasets import Batches, Stream, random_shift


def numbered(n):
    """Images of one pixel that are their own index."""
    return torch.arange(n, dtype=torch.int32)[:, None]


def test_training_batches_are_a_new_permutation_each_epoch():
    batches = Batches(numbered(1000), 128, torch.Tensor.float, shuffle=True)
    torch.manual_seed(0)
    first, second = (torch.cat(list(batches)).flatten() for _ in range(2))
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, torch.arange(1000.0))
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(batches)).flatten(), first)


def test_batches_without_shuffling_are_in_order_and_only_the_last_is_short():
    batches = Batches(numbered(300), 128, torch.Tensor.float)
    assert [len(batch) for batch in batches] == [128, 128, 44] and len(batches) == 3
    assert torch.equal(torch.cat(list(batches)).flatten(), torch.arange(300.0))


def test_a_stream_fills_every_batch_and_visits_every_image_once_a_pass():
    stream = Stream(numbered(100), 64)
    batches = list(itertools.islice(stream, 25))  # 1,600 images: 16 passes
    assert all(len(batch) == 64 for batch in batches)
    passes = torch.cat(batches).flatten().view(16, 100)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(100.0).expand(16, 100))
    assert not torch.equal(passes[0], passes[1])


def test_a_stream_continues_from_its_state():
    torch.manual_seed(0)
    stream = Stream(numbered(10), 4)
    list(itertools.islice(stream, 4))
    state, random = stream.state_dict(), torch.get_rng_state()
    expected = torch.stack(list(itertools.islice(stream, 5)))
    other = Stream(numbered(10), 4)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    assert torch.equal(torch.stack(list(itertools.islice(other, 5))), expected)


@pytest.mark.parametrize("max_shift, n_images", [(1, 100), (3, 500)])
def test_shifts_never_wrap_around_an_edge(max_shift, n_images):
    torch.manual_seed(0)
    # No pixel is black, so that an edge shows.
    images = torch.randint(1, 256, (n_images, 784), dtype=torch.uint8)
    shifted = random_shift(images, max_shift)
    seen = set()
    for image, result in zip(images.view(-1, 28, 28), shifted.view(-1, 28, 28)):
        for down, right in itertools.product(range(-max_shift, max_shift + 1), repeat=2):
            expected = torch.zeros_like(image)
            expected[max(down, 0) : 28 + min(down, 0), max(right, 0) : 28 + min(right, 0)] = image[
                max(-down, 0) : 28 + min(-down, 0), max(-right, 0) : 28 + min(-right, 0)
            ]
            if torch.equal(result, expected):
                seen.add((down, right))
                break
        else:
            pytest.fail("an image is not the shifted original with black edges")
    assert len(seen) == (2 * max_shift + 1) ** 2


def test_a_stream_gives_a_batch_at_a_time():
    torch.manual_seed(0)
    expected = list(itertools.islice(Stream(numbered(10), 4), 6))
    torch.manual_seed(0)
    stream = Stream(numbered(10), 4)
    assert all(torch.equal(next(stream), batch) for batch in expected)


def test_the_state_of_a_stream_is_that_of_its_moment():
    stream = Stream(numbered(10), 4)
    next(stream)
    state = stream.state_dict()
    assert len(state["order"]) == 6
    assert state["order"].untyped_storage().nbytes() == 6 * 8  # of no whole pass
    next(stream)
    assert len(state["order"]) == 6
