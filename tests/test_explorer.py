import json
import re
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from datasets import bmnist, mnist
from figures.explorer import measure, models, networks, page
from figures.explorer.__main__ import main, parse
from figures.kinds import SCRIPTS
from figures.runs import find_runs
from harness import checkpoints, cli, references
from harness.errors import UserError
from tests.conftest import ROOT
from tests.explorer_runs import write_runs, write_vae


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


# --- Weights
def test_rounded_weights_are_within_half_a_step():
    weight = torch.randn(5, 40) * torch.tensor([[1e-6], [1.0], [50.0], [0.0], [1.0]])
    integers, scale = networks.quantise_rows(weight)
    assert integers.dtype == torch.int8 and integers.min() >= -127
    error = (weight - integers * scale[:, None]).abs()
    assert (error <= 0.5001 * scale[:, None]).all()
    assert (integers.abs().amax(dim=1) == torch.tensor([127, 127, 127, 0, 127])).all()


def test_rounding_twice_changes_nothing():
    model = networks.quantised(vae.VAE(16, 3))
    again = networks.quantised(model)
    for one, other in zip(model.parameters(), again.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_folded_batch_norm_is_the_same_function():
    torch.manual_seed(0)
    generator = gan.Generator().eval()
    for norm in generator.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            for values in (norm.running_mean, norm.weight.data, norm.bias.data):
                values.normal_()
            norm.running_var.uniform_(0.5, 2)
    z = torch.randn(20, 100)
    with torch.no_grad():
        images, rounded_images = generator(z), networks.quantised(generator)(z)
    assert images.std() > 0.05
    assert (images - rounded_images).std() < 0.02 * images.std()


def test_packed_layers_can_be_read_back():
    layer = torch.nn.Linear(7, 3)
    description, blob = networks.pack({"one": [(layer, 0.2)]})
    assert description == {"one": [{"nIn": 7, "nOut": 3, "slope": 0.2}]}
    scale, bias = np.frombuffer(blob, "<f4", 6).reshape(2, 3)
    weight = np.frombuffer(blob, np.int8, 21, 24).reshape(3, 7) * scale[:, None]
    assert len(blob) == 48
    np.testing.assert_array_equal(bias, layer.bias.detach())
    np.testing.assert_allclose(weight, layer.weight.detach(), atol=scale.max() / 2 + 1e-7)


def test_all_models_at_full_size_fit_in_10_megabytes():
    flow, generator = nf.Model([784], n_hidden=256), gan.Generator()
    for layer in flow.flow.layers:
        torch.nn.init.normal_(layer.nn[-1].weight)  # zeros would be compressed
    packed = [
        networks.vae_networks(vae.VAE(500, 20)),
        networks.vae_networks(vae.VAE(500, 2)),
        networks.gan_networks(networks.quantised(generator), gan.Discriminator()),
        networks.flow_networks(flow),
    ]
    size = sum(len(page.encoded(networks.pack(each)[1])) for each in packed)
    digits = page.encoded(measure.grey_images().numpy().tobytes())
    assert size + len(digits) < 9.5e6


def test_8_bit_weights_cost_less_than_half_a_nat_and_a_hundredth_of_a_bit():
    torch.manual_seed(0)
    images = bmnist()[0].images[:2000].float()
    model = vae.VAE(100, 20)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(3):
        for batch in images.split(100):
            vae.train_step(model, optimizer, batch)
    cost = measure.measure_vae(model, networks.quantised(model))
    assert cost["bands"]["negElbo"][1] < 250  # it has learned something
    assert abs(cost["cost"]["value"]) < 0.5
    model = nf.Model([784], 2, 32)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for batch in mnist()[0].images[:3000].float().split(100):
        nf.train_step(model, optimizer, 5.0, batch)
    cost = measure.measure_flow(model, networks.quantised(model))
    assert cost["bands"]["bpd"][1] < 5
    assert abs(cost["cost"]["value"]) < 0.01


@pytest.mark.parametrize("part", page.SECTIONS.values(), ids=page.SECTIONS)
def test_code_is_cited_by_its_file_and_line(part):
    cited = page.section(part)
    lines = (ROOT / cited["file"]).read_text().splitlines(keepends=True)
    assert "".join(lines[cited["line"] - 1 :]).startswith(cited["source"])
    assert f" {part.__name__}(" in cited["source"]


def test_the_page_states_where_the_report_s_flow_ends(runs):
    found, _ = find_models(runs)
    description, _ = page.describe("flow", found["flow"])
    rows = references.rows("a3_nf_template.py", {"protocol": "standard"})
    (end,) = [row.value for row in rows if row.at == 100]
    assert description["report"] == {"width": 1024, "bpd": end}


# Linear RGB as protanopes, deuteranopes and tritanopes see it (Machado et al., 2009).
VISION = (
    np.eye(3),
    [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
)  # fmt: skip
TO_XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8728]]


def lab(linear):
    """CIELAB of linear RGB [n, 3], for a D65 white."""
    t = np.clip(linear, 0, 1) @ np.array(TO_XYZ).T
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


@pytest.mark.parametrize("theme", [0, 1])
def test_colour_blind_readers_tell_ten_classes_apart(theme):
    css = (page.HERE / "css" / "controls.css").read_text()
    rule = r"#plane-class-\d \{\s*color: light-dark\(#(\w{6}), #(\w{6})\)"
    colours = [pair[theme] for pair in re.findall(rule, css)]
    assert len(colours) == 10
    channels = np.array([list(bytes.fromhex(colour)) for colour in colours]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    for seen in VISION:
        values = lab(linear @ np.array(seen).T)
        distances = np.linalg.norm(values[:, None] - values, axis=-1) + 1e3 * np.eye(10)
        assert distances.min() > 25


# --- Which runs
def find_models(base):
    return models.find_models(find_runs(base)[0])


def test_the_newest_finished_run_that_fits_is_shown(runs, tmp_path):
    base = tmp_path / "runs"
    shutil.copytree(runs / "flow", base / "old")
    shutil.copytree(runs / "flow", base / "new")
    write_vae(base / "vae", 20, finished=False)
    config = json.loads((base / "new" / "config.json").read_text())
    (base / "new" / "config.json").write_text(json.dumps(config | {"started": "2027"}))
    shutil.copytree(base / "new", base / "wide")
    config["settings"]["n_hidden"] = 1024
    (base / "wide" / "config.json").write_text(json.dumps(config | {"started": "2028"}))
    fashion = config | {"started": "2029", "settings": config["settings"] | {"n_hidden": 8}}
    fashion["settings"]["dataset"] = "fashion"
    shutil.copytree(base / "new", base / "fashion")
    (base / "fashion" / "config.json").write_text(json.dumps(fashion))
    (base / "foreign").mkdir()
    (base / "foreign" / "config.json").write_text("[]")
    found, missing = find_models(base)
    assert {name: trained.run.folder.name for name, trained in found.items()} == {"flow": "new"}
    assert missing["gan"].command == "python a3_gan_template.py"
    assert missing["vae20"].command == "python a3_vae_template.py --zdim 20"
    assert "is unfinished" in missing["vae20"].reason


def test_a_full_length_run_on_static_bits_with_the_lowest_seed_is_shown(tmp_path):
    write_vae(tmp_path / "seed1", 20, started="2027", seed=1)
    write_vae(tmp_path / "seed0", 20, started="2026")
    write_vae(tmp_path / "quick", 20, started="2028", epochs=2)
    write_vae(tmp_path / "larochelle", 20, started="2029", binarize="larochelle")
    assert find_models(tmp_path)[0]["vae20"].run.folder.name == "seed0"


def test_commands_for_missing_models_make_runs_that_fit():
    for wanted in models.WANTED.values():
        _, script, *flags = wanted.command.split()
        settings = SCRIPTS[script].Config.parse(flags).flat()
        run = Namespace(script=script, settings=settings, config={})
        assert wanted.misfit(run) is None


def test_runs_that_do_not_fit_are_named_with_their_reason(runs, tmp_path, capsys):
    for name, changed in (("deep", {"n_flows": 8}), ("wide", {"n_hidden": 1024})):
        shutil.copytree(runs / "flow", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["settings"] |= changed
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    _, missing = find_models(tmp_path)
    assert f"{tmp_path / 'deep'} is left out: its n_flows is 8, not 4" in missing["flow"].reason
    assert "its n_hidden is 1,024, more than 320" in missing["flow"].reason
    with pytest.raises(UserError, match="no run under .*its n_flows is 8, not 4"):
        main(parse(["--runs", str(tmp_path)]))
    with pytest.raises(UserError, match="--nf .*deep: its n_flows is 8, not 4"):
        main(parse(["--runs", str(tmp_path), "--nf", str(tmp_path / "deep")]))


def test_a_run_named_by_hand_is_shown_as_it_is_without_a_complaint(tmp_path, capsys):
    write_vae(tmp_path / "mine", 2, epochs=1, binarize="threshold", dataset="fashion")
    write_vae(tmp_path / "newer", 2, started="2030")
    out = tmp_path / "page.html"
    main(parse(["--runs", str(tmp_path), "--manifold", str(tmp_path / "mine"), "--out", str(out)]))
    said = capsys.readouterr()
    assert said.err == "" and str(tmp_path / "mine") in said.out and "newer" not in said.out


def test_a_run_with_damaged_weights_is_missing_with_its_reason(runs, tmp_path):
    shutil.copytree(runs / "vae2", tmp_path / "vae2")
    shutil.copytree(runs / "flow", tmp_path / "flow")
    (tmp_path / "vae2" / checkpoints.WEIGHTS).write_bytes(b"nothing")
    found, missing = find_models(tmp_path)
    assert list(found) == ["flow"]
    assert "is damaged" in missing["vae2"].reason


def test_no_run_at_all_is_one_line_and_status_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, lambda: parse(["--runs", str(tmp_path)]))
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "there is no run that fits" in message


def test_a_folder_that_is_not_there_is_an_error_before_the_work(tmp_path):
    page = tmp_path / "none" / "page.html"
    with pytest.raises(UserError, match="there is no folder .*none; name another file"):
        main(parse(["--runs", str(tmp_path), "--out", str(page)]))


def test_no_folder_of_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        main(parse(["--runs", str(tmp_path / "none")]))
