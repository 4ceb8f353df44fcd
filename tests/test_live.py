"""The live page: what it says in each state, its cost, and that it cannot stop a training."""

import contextlib
import os
import re
import time
from html.parser import HTMLParser
from urllib.parse import quote

import numpy as np
import pytest
import torch

from harness import checkpoints, live, plots, references
from harness import run as run_module
from tests.bare_runs import Config, make_run

ROW = {"quantity": "loss & more", "unit": "nats", "key": "loss", "at": 2, "value": 2.0}
ROW |= {"kind": "published", "source": "someone", "high": 2.0, "label": "someone"}


@pytest.fixture(autouse=True)
def one_row(monkeypatch):
    """A row that grades the runs of these tests."""
    table = {"script": "script.py", "standard": {"settings": {}, "rows": [ROW]}}
    content = {"harmless": list(Config().flat()), "one": table}
    monkeypatch.setattr(references, "load", lambda: content)
    monkeypatch.setattr(run_module, "_oversubscribed", lambda: False)


def page_of(run):
    return (run.folder / "index.html").read_text()


def reloads(page):
    return 'http-equiv="refresh"' in page


@pytest.fixture
def always(monkeypatch):
    """Curves and page are written after every line."""
    for name in ("CURVES_SECONDS", "PAGE_SECONDS"):
        monkeypatch.setattr(live, name, 0.0)
    for name in ("CURVES_COST", "PAGE_COST"):
        monkeypatch.setattr(live, name, 1e9)


def test_the_page_follows_the_run(tmp_path, always, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: clock[0])
    run = make_run(tmp_path / "a<b", lr=0.125)
    pages = []
    with run:
        for epoch in run.remaining(4):
            pages.append(page_of(run))
            clock[0] += 90.0
            run.log(epoch=epoch, loss=1 / epoch)
            picture, halves = run.folder / f"samples_{epoch:03d}.png", "left & right" * (epoch > 1)
            plots.save_image(picture, np.eye(2), halves)
            run.checkpoint()
        pages.append(page_of(run))
        run.finish({"test": {"loss": 0.375}}, torch.nn.Linear(1, 1))
    first, second, third, _, evaluating = pages
    assert all(map(reloads, pages)) and not reloads(page_of(run))
    assert "<h1>a&lt;b</h1>" in first and "0 of 4" in first and "0.125" in first
    assert "<img" not in first and " left<" not in first
    assert "epoch 1 of 4, about 04:30 left" in second and "not reached" in second
    assert "epoch 2 of 4, about 03:00 left" in third
    assert '<progress value="2" max="4">50%</progress>' in third
    assert "loss &amp; more</bdi></td><td><bdi>nats</bdi></td><td><bdi>2</bdi></td>" in third
    grids, earlier = third.split("<h2>Earlier samples</h2>")
    assert 'src="samples_002.png?' in grids and "samples_001" not in grids
    assert '<a href="samples_001.png">' in earlier and 'alt="samples, 1"' in earlier
    assert 'alt="samples, 2: left &amp; right"' in grids
    assert "samples_002.png: samples, 2: left &amp; right</figcaption>" in grids
    assert 'alt="curves: training, validation"' in third
    assert 'src="loss.png?' in third and "Trained; evaluating" in evaluating
    assert "Finished, epoch 4 of 4" in page_of(run) and "0.375" in page_of(run)
    for page in (*pages, page_of(run)):
        HTMLParser().feed(page)
        pictures = re.findall(r'src="([^"?]*)', page)
        assert all((run.folder / name).exists() for name in pictures)
        assert page.count("<img") == page.count('alt="') - page.count('alt=""')


def test_a_changed_picture_has_another_address(tmp_path, always):
    run = make_run(tmp_path / "run")
    addresses = []
    for epoch in run.remaining(4):
        run.log(epoch=epoch, loss=1 / epoch)
        run.checkpoint()
        addresses += re.findall(r'src="(loss[^"]*)"', page_of(run))
    assert len(addresses) == len(set(addresses)) == 4


def test_a_stopped_run_s_page_says_how_to_go_on_and_reloads_no_more(tmp_path, always):
    run = make_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), run:
        for epoch in run.remaining(3):
            run.log(epoch=epoch, loss=1.0)
            run.checkpoint()
            if epoch == 2:
                raise KeyboardInterrupt
    page = page_of(run)
    assert "Stopped at epoch 2 of 3" in page and f"--resume {run.folder}</code>" in page
    assert not reloads(page) and "loss.png" in page
    run.close()
    resumed = make_run(resume=run.folder)
    next(resumed.remaining(3))
    assert reloads(page_of(resumed))


def test_a_run_killed_between_its_last_checkpoint_and_its_curves_draws_them(
    tmp_path, always, monkeypatch
):
    run = make_run(tmp_path / "run")
    for epoch in run.remaining(3):
        if epoch == 3:
            before = (run.folder / "loss.png").read_bytes()
            monkeypatch.setattr(live.LivePage, "update", lambda *_: None)
        run.log(epoch=epoch, loss=1 / epoch)
        run.checkpoint()
    run.close()
    assert (run.folder / "loss.png").read_bytes() == before
    resumed = make_run(resume=run.folder)
    assert not list(resumed.remaining(3))
    assert (run.folder / "loss.png").read_bytes() != before


def test_curves_and_page_cost_about_one_percent_of_the_time(tmp_path, monkeypatch):
    clock, drawn = [0.0], []
    monkeypatch.setattr(live.time, "perf_counter", lambda: clock[0])

    def slow_curves(*_):
        clock[0] += 0.25
        drawn.append(clock[0])

    monkeypatch.setattr(live, "draw_curves", slow_curves)
    monkeypatch.setattr(checkpoints, "save", lambda *_: None)
    run = make_run(tmp_path / "run")
    for epoch in run.remaining(600):
        clock[0] += 1.0
        run.log(epoch=epoch, loss=1.0)
        run.checkpoint()
    drawn.pop()  # the end of the run
    assert drawn[0] <= 7.0 and 0.008 < 0.25 * len(drawn) / clock[0] <= 0.012


def test_a_full_disk_stops_neither_page_nor_curves_nor_training(tmp_path, always, monkeypatch):
    attempts = []

    def full(path, *_, **options):
        attempts.append(path.name)
        raise OSError(28, "No space left on device", str(path))

    run = make_run(tmp_path / "run")
    for module in (live, plots):
        monkeypatch.setattr(module, "write_whole", full)
    for epoch in run.remaining(3):
        run.log(epoch=epoch, loss=1.0)
        run.checkpoint()
    assert run.count == 3 and set(attempts) == {"index.html", "loss.png"}


def test_pictures_of_any_name_are_shown(tmp_path, always):
    run = make_run(tmp_path / "run")
    name = "\udcff\n1.png"  # a byte that is no UTF-8, and a new line
    (run.folder / name).touch()
    for epoch in run.remaining(2):
        run.log(epoch=epoch, loss=1.0)
        run.checkpoint()
    assert f'src="{quote(os.fsencode(name))}?' in page_of(run)


def test_drawing_leaves_the_random_numbers_alone(tmp_path, always):
    run = make_run(tmp_path / "run")
    states = []
    for epoch in run.remaining(3):
        states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))
        run.log(epoch=epoch, loss=1.0)
        run.checkpoint()
    assert (run.folder / "loss.png").exists() and states[0] == states[1] == states[2]


@pytest.mark.thorough
def test_the_open_page_shows_the_curve_moving(tmp_path, always, monkeypatch, new_browser):
    """Nobody touches the browser between the looks: the page reloads itself, until the end."""
    reloading = pytest.importorskip("selenium.common.exceptions").WebDriverException
    monkeypatch.setattr(live, "RELOAD_SECONDS", 1)
    run = make_run(tmp_path / "run")
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    new_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    epochs = run.remaining(12)

    def train(n):
        for _ in range(n):
            run.log(epoch=next(epochs), loss=100 / (run.count + 1))
            run.checkpoint()

    def look(words):
        """A picture of the curve once the page has the words."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if words in new_browser.execute_script("return document.body?.innerText ?? ''"):
                with contextlib.suppress(reloading):  # it reloads between two calls
                    curve = new_browser.find_element("css selector", "img")
                    if new_browser.execute_script("return arguments[0].naturalWidth", curve) > 0:
                        return curve.screenshot_as_base64
        raise AssertionError(f"no {words!r} on the page")

    train(4)
    new_browser.get((run.folder / "index.html").as_uri())
    first = look("epoch 4 of 12")
    assert look("epoch 4 of 12") == first
    width = new_browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390  # a phone's
    train(5)
    second = look("epoch 9 of 12")
    assert first != second
    for epoch in epochs:
        run.log(epoch=epoch, loss=100 / epoch)
        run.checkpoint()
    run.finish({}, torch.nn.Linear(1, 1))
    assert look("Finished") != second
    marker = new_browser.execute_script("return window.marker = 'the same document'")
    time.sleep(1.5)
    assert new_browser.execute_script("return window.marker") == marker  # it reloads no more
