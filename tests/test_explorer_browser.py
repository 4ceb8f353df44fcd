"""The page in headless Chromium; skipped where it or selenium is not installed."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
from figures.explorer import measure, models, networks
from figures.explorer.__main__ import main, parse
from figures.runs import find_runs
from tests.explorer_runs import write_runs

pytestmark = pytest.mark.thorough

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
Keys, ActionChains = webdriver.Keys, webdriver.ActionChains

TABS = ("plane", "units", "draw", "gan", "flow", "compare")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def rounded(runs):
    """The models whose weights the page has."""
    found, _ = models.find_models(find_runs(runs)[0])
    return {name: networks.quantised(trained.model) for name, trained in found.items()}


@pytest.fixture(scope="module")
def address(runs, tmp_path_factory):
    """The address of the page with all models."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    main(parse(["--runs", str(runs), "--out", str(out)]))
    return out.as_uri()


@pytest.fixture
def browser(new_browser, address):
    """A browser with the page freshly opened, on a desktop's window."""
    resize(new_browser, 1200, 900)
    open_page(new_browser, address)
    return new_browser


def open_page(browser, address):
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(address)
    for _ in range(600):
        if browser.execute_script("return 'ready' in document.body.dataset"):
            return
        time.sleep(0.05)
    raise AssertionError(f"the page is not ready: {browser.get_log('browser')}")


def resize(browser, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def compute(browser, expression, **values):
    """The value of a JavaScript expression of `models`, `digits` and the given values."""
    names = ", ".join(values)
    values = [value.tolist() if torch.is_tensor(value) else value for value in values.values()]
    return browser.execute_script(
        f"const {{ models, digits }} = explorer; const [{names}] = arguments[0]; "
        f"const list = (values) => Array.from(values); return {expression}",
        values,
    )


def text_of(browser, selector):
    return browser.find_element("css selector", selector).text


def picture(browser, name):
    return browser.execute_script(f"return document.getElementById('{name}').toDataURL()")


def open_tab(browser, name):
    browser.execute_script(f"document.getElementById('tab-{name}').click()")
    next_frame(browser)
    next_frame(browser)


def next_frame(browser):
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")


def test_the_page_opens_without_error_or_request(browser, address):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls == [address]
    for name in TABS:
        open_tab(browser, name)
        assert [tab for tab in TABS if browser.find_element("id", tab).is_displayed()] == [name]
    assert browser.get_log("browser") == []


@torch.no_grad()
def test_javascript_agrees_with_pytorch_to_one_grey_level(browser, rounded):
    torch.manual_seed(0)
    for name, z in (("vae2", torch.randn(5, 2)), ("vae20", torch.randn(5, 20))):
        means = compute(browser, f"z.map((row) => list(models.{name}.decode(row)))", z=z)
        expected = rounded[name].decoder(z)
        assert expected.std() > 0.02
        assert (255 * (torch.tensor(means) - expected)).abs().max() <= 1
    z = torch.randn(5, 100)
    images = compute(
        browser, "z.map((row) => list(models.gan.generate(Float32Array.from(row))))", z=z
    )
    expected = gan.generate(rounded["gan"]["generator"], z)
    assert (255 * (torch.tensor(images) - expected)).abs().max() <= 1
    opinions = compute(
        browser, "x.map((row) => models.gan.opinion(Float32Array.from(row)))", x=expected
    )
    expected = rounded["gan"]["discriminator"](2 * expected - 1).squeeze(1)
    torch.testing.assert_close(torch.tensor(opinions), expected, rtol=0, atol=1e-4)
    z = torch.randn(5, 784)
    flow = rounded["flow"]
    states = compute(
        browser,
        "z.map((row) => list(models.flow.fromNoise(Float32Array.from(row)).states.at(-1)))",
        z=z,
    )
    logits, ldj = flow.flow(z, torch.zeros(5), reverse=True)
    y, _ = flow.logit_normalize(logits, ldj, reverse=True)
    y_page, _ = flow.logit_normalize(torch.tensor(states), ldj, reverse=True)
    assert (y - y_page).abs().max() <= 1


@torch.no_grad()
def test_javascript_agrees_with_pytorch_on_likelihoods(browser, rounded, monkeypatch):
    bits, grey = measure.binary_images()[:20].float(), measure.grey_images()[:20].float()
    assert compute(browser, "[3, 19].map((n) => list(digits.bits(n)))") == bits[[3, 19]].tolist()
    assert compute(browser, "[3, 19].map((n) => list(digits.grey(n)))") == grey[[3, 19]].tolist()
    n = list(range(20))
    nats = compute(browser, "n.map((k) => models.vae20.negElbo(digits.bits(k)))", n=n)
    draws = [rounded["vae20"].terms(bits) for _ in range(200)]
    for name, key in (("kl", "kl"), ("recon", "recon"), ("neg_elbo", "negElbo")):
        expected = torch.stack([draw[name] for draw in draws]).mean().item()
        # Both average over draws of z, the page over 10 for each digit.
        assert np.mean([row[key] for row in nats]) == pytest.approx(expected, rel=0.01)
    noise = torch.rand(784)
    monkeypatch.setattr(rounded["flow"], "dequantize", lambda x: x + noise)
    expected = nf.bits_per_dimension(rounded["flow"](grey), 784)
    bpd = compute(
        browser,
        "n.map((k) => models.flow.fromDigit(digits.grey(k), Float32Array.from(noise)).bpd)",
        n=n,
        noise=noise,
    )
    torch.testing.assert_close(torch.tensor(bpd), expected, rtol=1e-4, atol=0)
    states = "models.flow.fromDigit(digits.grey(0)).states"
    there = compute(browser, f"list({states}.at(-1))")
    back = compute(browser, f"list(models.flow.fromNoise({states}[0]).states.at(-1))")
    np.testing.assert_allclose(back, there, atol=0.01)


def test_sliders_and_buttons_change_the_digit(browser):
    right, click = 5 * Keys.ARROW_RIGHT, Keys.SPACE
    for tab, canvas, presses in (
        ("plane", "plane-digit", {"plane-z1": right, "plane-z2": right, "plane-field": right}),
        ("units", "units-digit", {"units-sample": click, "units-zero": click, "units-test": click}),
        ("units", "units-digit", {"units-position": right}),
        ("gan", "gan-digit", {"gan-position": right, "gan-new": click}),
        ("flow", "flow-digit", {"flow-temperature": 5 * Keys.ARROW_LEFT, "flow-test": click}),
        ("flow", "flow-digit", {"flow-step": 5 * Keys.ARROW_LEFT}),
    ):
        open_tab(browser, tab)
        for control, keys in presses.items():
            before = picture(browser, canvas)
            browser.find_element("id", control).send_keys(keys)
            next_frame(browser)
            assert picture(browser, canvas) != before, control
    open_tab(browser, "units")
    sliders = browser.find_elements("css selector", "#units-sliders input")
    assert len(sliders) == 20
    for slider in sliders[:2]:
        before = picture(browser, "units-digit")
        slider.send_keys(20 * Keys.ARROW_RIGHT)
        assert picture(browser, "units-digit") != before


@pytest.mark.parametrize(
    ("tab", "slider", "button"),
    [("gan", "gan-position", "gan-new"), ("units", "units-position", "units-test")],
)
def test_a_new_walk_begins_at_the_sliders_zero(browser, tab, slider, button):
    open_tab(browser, tab)
    position = browser.find_element("id", slider)
    position.send_keys(5 * Keys.ARROW_RIGHT)
    assert position.get_attribute("aria-valuetext") != "0.00"
    browser.find_element("id", button).send_keys(Keys.SPACE)
    assert position.get_attribute("value") == "0"
    assert position.get_attribute("aria-valuetext") == "0.00"


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_drawing_changes_what_the_models_say(browser, how):
    open_tab(browser, "draw")
    before = [text_of(browser, f"#draw-{name} output") for name in ("elbo", "opinion", "bpd")]
    pad = browser.find_element("css selector", "#draw .pad")
    if how == "mouse":
        moves = ActionChains(browser, duration=20).move_to_element(pad).click_and_hold()
        moves.move_by_offset(30, 60).move_by_offset(-50, -10).release().perform()
    else:
        pad.send_keys(" " + 8 * Keys.ARROW_DOWN + 4 * Keys.ARROW_RIGHT)
    next_frame(browser)
    after = [text_of(browser, f"#draw-{name} output") for name in ("elbo", "opinion", "bpd")]
    assert text_of(browser, "#draw-name") == "your digit"
    assert all(one != other for one, other in zip(before, after)), (before, after)
    grey = torch.tensor(compute(browser, "list(digits.current.grey)")).view(28, 28)
    assert grey.max() == 255
    # As in MNIST: within 20 x 20 pixels around the centre of mass.
    rows, columns = (torch.nonzero(grey.sum(dim=axis)).flatten() for axis in (1, 0))
    assert 18 <= max(len(rows), len(columns)) <= 22
    middle = (grey.sum(dim=1) * (torch.arange(28) + 0.5)).sum() / grey.sum()
    assert middle == pytest.approx(14, abs=0.3)


def test_an_empty_pad_has_dashes_and_no_numbers(browser):
    open_tab(browser, "draw")
    outputs = "#draw-elbo output, #draw-opinion output, #draw-bpd output"
    for button, dashes in (("Clear", {"–"}), ("Take a test digit", set())):
        (pressed,) = browser.find_elements("xpath", f"//*[@id='draw']//button[.='{button}']")
        pressed.click()
        next_frame(browser)
        next_frame(browser)
        found = [output.text for output in browser.find_elements("css selector", outputs)]
        assert len(found) == 5 and {text for text in found if text == "–"} == dashes
    assert browser.find_element("css selector", "#draw-bpd .mark").is_displayed()
    assert browser.get_log("browser") == []


def test_everything_is_within_reach_on_a_phone(browser):
    resize(browser, 360, 740)
    for name in TABS:
        open_tab(browser, name)
        outside = browser.execute_script(
            "return [...document.querySelectorAll('button, input, canvas, summary')]"
            ".filter((node) => node.checkVisibility())"
            ".filter((node) => { const box = node.getBoundingClientRect();"
            " return box.left < 0 || box.right > innerWidth || box.width < 8 })"
            ".map((node) => node.id || node.outerHTML)"
        )
        assert outside == [], name
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


def test_every_control_has_a_name_and_is_reached_by_the_tab_key(browser):
    for name in TABS:
        open_tab(browser, name)
        for control in browser.find_elements("css selector", f"#{name} :is(button, input, .pad)"):
            if control.is_displayed():
                assert control.accessible_name, control.get_attribute("outerHTML")
                assert control.get_property("tabIndex") == 0
        for canvas in browser.find_elements("css selector", f"#{name} canvas[role]"):
            if canvas.is_displayed():
                assert canvas.accessible_name, canvas.get_attribute("outerHTML")
    tab = browser.find_element("id", "tab-compare")
    tab.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("id") == "tab-plane"


def test_the_game_keeps_the_score(browser):
    open_tab(browser, "compare")
    right = 0
    for played in range(1, 5):
        choices = browser.find_elements("css selector", "#game-choices button")
        assert len(choices) == 4
        choices[played - 1].click()
        choices[0].click()  # a second answer does not count
        labels = [choice.text for choice in choices]
        assert sorted(labels) == ["GAN", "VAE", "flow", "real"]
        right += labels[played - 1] == "real"
        assert f"{right} of {played} right" in text_of(browser, "#game-score")
        browser.find_element("id", "game-next").click()


def test_code_of_the_scripts_is_shown(browser):
    browser.find_element("css selector", "#plane [data-section=vae-decoder]").click()
    assert "a3_vae_template.py" in text_of(browser, "#code-title")
    assert "class Decoder(nn.Module)" in text_of(browser, "#code-text")


def test_the_page_says_what_is_missing(new_browser, runs, tmp_path):
    shutil.copytree(runs / "flow", tmp_path / "runs" / "flow")
    main(parse(["--runs", str(tmp_path / "runs")]))
    open_page(new_browser, (tmp_path / "runs" / "explorer.html").as_uri())
    for tab, command in (
        ("plane", "python a3_vae_template.py --zdim 2"),
        ("units", "python a3_vae_template.py --zdim 20"),
        ("gan", "python a3_gan_template.py"),
    ):
        open_tab(new_browser, tab)
        assert text_of(new_browser, f"#{tab} .missing pre") == command
    open_tab(new_browser, "flow")
    assert "2.345 bits per dimension" in text_of(new_browser, "#flow-width")
    assert new_browser.get_log("browser") == []


def test_the_page_says_when_its_models_cannot_be_unpacked(new_browser, address, tmp_path):
    page = Path(address.removeprefix("file://")).read_text()
    damaged = page.replace('id="weights-digits">', 'id="weights-digits">AAAA')
    assert damaged != page
    (tmp_path / "page.html").write_text(damaged)
    new_browser.get((tmp_path / "page.html").as_uri())
    for _ in range(600):
        if new_browser.find_elements("css selector", "#views > .missing"):
            break
        time.sleep(0.05)
    assert "can't unpack the models: " in text_of(new_browser, "#views > .missing")
