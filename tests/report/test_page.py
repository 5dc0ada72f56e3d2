"""The page of a study: what its files hold, and what a real browser makes of it."""

import base64
import io
import json
import re
import shutil
import zlib
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import snakemake

from igmask import arrays
from igmask.errors import InputError
from igmask.kernels import inpainted_arrays
from igmask.plain import to_pixels, unpack
from igmask.report.page import page as page_module
from igmask.report.page.gallery import is_exact
from igmask.report.page.page import page
from igmask.report.page.plots import plots
from igmask.tools.export import export

HOSTILE = "<script>alert(1)</script>"
CLASSES = ["a&b", HOSTILE.replace("/", "∕"), "\u2028'\"`${1}"]
PS = ["80", "50"]
NETWORK = """
import torch
from torch import nn

def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 3)
        )
"""
STUDY = {
    "dataset": {"source": "folder", "root": "images"},
    "models": {
        name: {"source": "page_net:net", "arguments": {"seed": seed}, "size": 20, "mean": [0.4] * 3}
        for seed, name in enumerate(("first", "1e3"))
    },
    "attribution": {"n_steps": 4},
    "selection": {"p": [50, 80]},
    "masking": {
        "fills": ["black", "mean", "image-mean", "blur", "noisy-linear"],
        "blur_sigma": 2,
        "controls": ["same-class", "randomised"],
    },
    "curves": {"points": 3},
    "statistics": {"replicates": 100, "probe": False},
    "figures": {"n_images": 1, "formats": ["svg", "pdf"]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of images and classes with hostile names, in which a class has one image."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for i in range(7):
        place = folder / "images" / CLASSES[min(i % 3, i // 2)] / f'{i} "{HOSTILE[:8]}>.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (22, 26, 3), dtype=np.uint8)).save(place)
    (folder / "page_net.py").write_text(NETWORK)
    done = snakemake(folder, study=STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results"


def gallery_of(results, model):
    return json.loads((results / f"folder/models/{model}/gallery.json").read_text())


def values(text, dtype, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


# -- files -------------------------------------------------------------------------------------


def test_pictures_attributions_and_levels_are_those_of_the_files(results):
    found = gallery_of(results, "first")
    images = arrays.Shards([results / "folder/images/20/1-of-1.npy"])
    names = [Path(name).name for name in images.records["name"]]
    rows = [names.index(one["name"]) for one in found["images"]]
    assert sorted(rows) == list(range(7))
    for url, row in zip(found["pictures"], rows, strict=True):
        np.testing.assert_array_equal(pixels(url), images.read(np.array([row]))[0])
    scores = arrays.Shards([results / "folder/models/first/scores/1-of-1.npy"]).read(np.array(rows))
    signed = values(found["attribution"], np.int8, (7, 7, 7))
    attribution = scores[:, 0] - scores[:, 1]
    assert (abs(signed).reshape(7, -1).max(axis=1) == 127).all()
    assert (signed * attribution >= 0).all()
    assert found["ps"] == PS
    levels = values(found["levels"]["selection"], np.uint8, (7, 7, 7))
    for i, p in enumerate(PS):
        packed = arrays.Shards([results / f"folder/models/first/masks/{p}.npy"]).read(
            np.array(rows)
        )
        np.testing.assert_array_equal(levels > i, unpack(packed, (7, 7)))


def test_controls_are_as_large_as_the_selection_or_have_no_ranking(results):
    found = gallery_of(results, "first")
    chosen = values(found["levels"]["selection"], np.uint8, (7, 7, 7))
    same = values(found["levels"]["same-class"], np.uint8, (7, 7, 7))
    alone = [one["label"] for one in found["images"]].count(CLASSES[2])
    assert alone == 1
    for one, own, other in zip(found["images"], chosen, same, strict=True):
        if one["label"] == CLASSES[2]:
            assert not other.any()
        else:
            assert np.bincount(other.ravel()).tolist() == np.bincount(own.ravel()).tolist()
    assert found["levels"].keys() == {"selection", "same-class", "randomised"}


def test_what_is_said_is_that_of_the_records(results):
    found = gallery_of(results, "first")
    for condition in found["said"]:
        parts = [condition[key] for key in ("mode", "p", "fill", "mask")]
        name = "-".join(part for part in parts if part not in (None, "none", "selection"))
        records, _ = arrays.read_records(results / f"folder/models/first/records/{name}.parquet")
        of = {Path(one.name).name: one for one in records.itertuples(index=False)}
        for image, answer in zip(found["images"], condition["answers"], strict=True):
            record = of.get(image["name"])
            if record is None:
                assert answer is None
            else:
                place, percent, right = answer
                assert sorted(CLASSES)[record.predicted] == found["classes"][place]
                assert percent == round(100 * record.probability_predicted)
                assert right == record.correct


def test_the_headline_counts_what_is_beyond_chance_and_names_area_and_control(results):
    compared = pd.read_csv(results / "tables/comparisons.csv", dtype={"model": str})
    halves = (compared["first"] == "keep-50-black") & (compared["second"] == "drop-50-black")
    rows = compared[halves]
    assert len(rows) == 2
    open_ = int(((rows["ci_low"] <= 0) & (rows["ci_high"] >= 0)).sum())
    assert open_  # seven images
    text = (results / "index.html").read_text("utf-8")
    [headline] = re.findall("<h1>(.*?)</h1>", text, re.DOTALL)
    worse = int((rows["ci_high"] < 0).sum())
    assert headline.startswith(f"{worse} of 2 networks fared worse (")
    assert f"{open_} not beyond chance" in headline
    assert re.search(r"are \d+ % of the area and the latter \d+ %", headline)
    assert headline.endswith(".")


def test_one_network_fares_as_far_as_its_images_tell():
    words = {sign: page_module._fared([sign]) for sign in (-1, 0, 1)}
    assert words == {
        -1: "The network fared worse",
        0: "The network fared, beyond chance, no worse or better",
        1: "The network fared better",
    }
    assert page_module._fared([-1, -1]) == "2 of 2 networks fared worse"


def test_many_controls_have_a_line_each_and_chance_has_one():
    names = ["selection", *(f"control-{i}" for i in range(9))]
    common = {"model": "a", "fill": "black", "truth": "label", "n_classes": 10, "area_kept": 50.0}
    common |= {"p": "50", "top1": 20.0, "ci_low": 10.0, "ci_high": 30.0}
    rows = [common | {"mode": "keep", "mask": name} for name in names]
    rows.append(common | {"mode": "original", "mask": "none"})
    drawn = json.dumps(plots(pd.DataFrame(rows), None, "the attribution")["over-p"])
    scale = r'"strokeDash".*?"domain": (\[.*?\]), "range": (\[\[.*?\]\])'
    [(shown, dashes)] = set(re.findall(scale, drawn))
    assert json.loads(shown) == [*names, "original", "chance"]
    assert len(json.loads(dashes)) == len(names) + 2


def test_many_large_pictures_are_compressed():
    assert is_exact(np.zeros((8, 224, 224, 3), np.uint8))
    assert not is_exact(np.zeros((60, 224, 224, 3), np.uint8))


def test_files_that_are_none_are_named(results, tmp_path):
    study = STUDY | {"dataset": {"source": "demo"}}
    with pytest.raises(InputError, match=r"accuracy\.csv: not a table of igmask"):
        page(tmp_path, tmp_path / "page.html", study=study)
    other = tmp_path / "other.json"
    for text in ("{}", "[1", '{"levels": 1}'):
        other.write_text(text)
        if text != '{"levels": 1}':
            with pytest.raises(InputError, match=r"other\.json: not of `igmask gallery`"):
                page(results / "tables", tmp_path / "page.html", study=study, galleries=[other])
    assert not (tmp_path / "page.html").exists()


def test_figures_are_of_the_formats_asked_for(results):
    names = {path.suffix for path in (results / "figures").iterdir()}
    assert names == {".svg", ".pdf"}
    pdf = (results / "figures/accuracy-p.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded


def test_the_same_results_make_the_same_page(results, tmp_path):
    galleries = [results / f"folder/models/{name}/gallery.json" for name in STUDY["models"]]
    study = STUDY | {"dataset": {"source": "folder", "root": "images", "name": "folder"}}
    for name in ("first", "second"):
        page(results / "tables", tmp_path / name, study=study, galleries=galleries)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, where there is one."""
    webdriver = pytest.importorskip("selenium.webdriver")
    found = shutil.which("chromedriver")
    if not (found and shutil.which("chromium")):
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, results):
    """The page, loaded and drawn; it has asked for nothing and has nothing to complain of."""
    browser.get_log("performance")
    browser.get((results / "index.html").as_uri())
    wait(browser, "document.querySelectorAll('.plot[data-drawn]').length === 2")
    wait(browser, "document.getElementById('gallery').dataset.shown")
    yield browser
    complaints = [line["message"] for line in browser.get_log("browser")]
    assert complaints == []
    asked = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [
        one["params"]["request"]["url"]
        for one in asked
        if one["method"] == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in urls} <= {"file", "data", "blob"}
    own = (results / "index.html").as_uri()
    assert {url for url in urls if url.startswith("file")} == {own}


def wait(browser, condition):
    """Until a condition of the page holds."""
    script = """
    const done = arguments[arguments.length - 1];
    const look = () => (CONDITION) ? done(true) : setTimeout(look, 20);
    look();
    """
    assert browser.execute_async_script(script.replace("CONDITION", condition))


def choose(browser, **choices):
    """Set choices as a user does, p by its place in PS, and wait for the pictures."""
    if "p" in choices:
        choices["p"] = len(PS) - 1 - choices["p"]
    browser.execute_script(
        """
        const form = document.querySelector(".choices");
        for (const [name, value] of Object.entries(arguments[0])) {
          form[name].value = value;
          form[name].dispatchEvent(new Event("input", {bubbles: true}));
        }
        """,
        choices,
    )
    values = [f"form['{name}'].value" for name in ("model", "image", "mode", "fill", "mask")]
    form = "document.querySelector('.choices')"
    shown = " + ' ' + ".join(value.replace("form", form) for value in values)
    p = f"{json.dumps(PS)}[{len(PS) - 1} - {form}.p.value]"
    wait(browser, f"document.getElementById('gallery').dataset.shown === {shown} + ' ' + {p}")


def canvas(browser, name):
    """The pixels of a canvas."""
    url = browser.execute_script(f"return document.getElementById('{name}').toDataURL()")
    return pixels(url)


def caption(browser, name):
    beneath = f"document.getElementById('{name}').parentElement.querySelector('figcaption')"
    return browser.execute_script(f"return {beneath}.textContent")


@pytest.mark.external
def test_masked_pictures_are_those_that_export_writes(opened, results, tmp_path):
    arrays_ = [results / "folder/images/20/1-of-1.npy"]
    found = gallery_of(results, "1e3")
    models = "return [...document.querySelector('.choices').model.options].map((one) => one.text)"
    choose(opened, model=opened.execute_script(models).index("1e3"))
    for mode, fill, p in (
        ("keep", "black", "80"),
        ("keep", "mean", "50"),
        ("drop", "image-mean", "80"),
        ("drop", "blur", "50"),
    ):
        folder = tmp_path / f"{mode}-{fill}-{p}"
        masks = results / f"folder/models/1e3/masks/{p}.npy"
        export(arrays_, folder, masks=masks, mode=mode, fill=fill, blur_sigma=2)
        written = {path.name: path for path in folder.rglob("*.png")}
        listed = (folder / "labels.csv").read_text("utf-8")
        for i, image in enumerate(found["images"]):
            choose(opened, image=i, mode=mode, fill=fill, p=PS.index(p), mask="selection")
            [file] = [one for one in written.values() if one.name[0] == image["name"][0]]
            assert file.name in listed
            np.testing.assert_array_equal(canvas(opened, "masked"), np.asarray(Image.open(file)))


@pytest.mark.external
def test_what_depends_on_the_mask_is_solved_for_by_the_page(opened, results):
    found = gallery_of(results, "1e3")
    models = "return [...document.querySelector('.choices').model.options].map((one) => one.text)"
    place = opened.execute_script(models).index("1e3")
    originals = np.stack([pixels(url) for url in found["pictures"]])
    levels = values(found["levels"]["selection"], np.uint8, (7, 7, 7))
    for mode, level in (("keep", 0), ("keep", 1), ("drop", 1)):
        kept = to_pixels((levels > level) == (mode == "keep"), 20, 20, side=3)
        expected = 255 * inpainted_arrays(originals / np.float64(255), kept)
        for i in range(7):
            choose(opened, model=place, image=i, mode=mode, fill="noisy-linear", p=level)
            assert not kept[i].all()
            np.testing.assert_allclose(canvas(opened, "masked"), expected[i], atol=0.52)
            assert caption(opened, "masked").endswith("which igmask export adds")


@pytest.mark.external
@pytest.mark.parametrize("kept", ["none", "all", "a corner"])
def test_large_holes_are_solved_for_as_well(opened, kept):
    size, rng = (83, 120), np.random.default_rng(0)
    image, known = rng.integers(0, 256, (*size, 4), dtype=np.uint8), np.full(size, kept == "all")
    known[:2, :3] |= kept == "a corner"
    call = "return [...inpainted(arguments[0], Uint8Array.from(arguments[1]), 83, 120)]"
    solved = opened.execute_script(call, image.ravel().tolist(), known.ravel().tolist())
    expected = inpainted_arrays(image[None, ..., :3].astype(np.float64), known[None])[0]
    np.testing.assert_allclose(np.reshape(solved, expected.shape), expected, atol=0.5)


@pytest.mark.external
def test_the_slider_and_the_other_choices_change_what_is_seen(opened):
    choose(opened, model="0", image=0, mode="keep", fill="black", mask="selection", p=1)
    before = canvas(opened, "mask"), canvas(opened, "masked"), caption(opened, "masked")
    opened.execute_script("document.querySelector('.choices').p.focus()")
    webdriver = pytest.importorskip("selenium.webdriver")
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    webdriver.ActionChains(opened).send_keys(keys.ARROW_RIGHT).perform()
    wait(opened, "document.getElementById('gallery').dataset.shown.endsWith(' 80')")
    after = canvas(opened, "mask"), canvas(opened, "masked"), caption(opened, "masked")
    assert before[2].startswith("keep the top 50 %")
    assert after[2].startswith("keep the top 80 %")  # a slider to the right is more
    assert (after[0] == 255).sum() > (before[0] == 255).sum()
    assert not np.array_equal(before[1], after[1])
    choose(opened, mode="drop")
    np.testing.assert_array_equal(canvas(opened, "mask") == 255, after[0] != 255)
    choose(opened, mask="same-class", image=6)
    assert "no ranking" in caption(opened, "masked")
    label = opened.execute_script("return document.getElementById('masked').ariaLabel")
    assert label == caption(opened, "masked")


@pytest.mark.external
def test_names_are_text_whatever_they_hold(opened):
    options = opened.execute_script(
        "return [...document.querySelector('.choices').image.options].map((one) => one.text)"
    )
    assert sum(CLASSES[1] in option for option in options) >= 1
    assert sum(HOSTILE[:8] in option for option in options) == 7
    assert opened.execute_script("return document.scripts.length") == 3


@pytest.mark.external
def test_tables_sort_and_show_the_rows_of_a_quantity(opened):
    read = """
    const rows = [...document.querySelector(".table tbody").rows].filter((row) => !row.hidden);
    return rows.map((row) => [...row.cells].map((cell) => cell.textContent));
    """
    opened.execute_script(
        """
        const select = document.querySelector(".table select");
        select.value = arguments[0];
        select.dispatchEvent(new Event("input"));
        """,
        "top-1",
    )
    rows = opened.execute_script(read)
    assert {row[1] for row in rows} == {"top-1"}
    assert len(rows) == 10  # two networks, five fills
    for _ in range(2):
        opened.execute_script("document.querySelectorAll('.table thead button')[3].click()")
    column = [float(row[3]) for row in opened.execute_script(read)]
    assert column == sorted(column, reverse=True)
    opened.execute_script(
        """
        const select = document.querySelector(".table select");
        select.value = "";
        select.dispatchEvent(new Event("input"));
        document.querySelectorAll('.table thead button')[3].click();
        """
    )
    rows = opened.execute_script(read)
    column = [float(row[3]) for row in rows if row[1] == "top-1"]
    assert column == sorted(column)
    heads = [row[0] for row in rows]  # what is said of a network stays together
    assert len([*groupby(heads)]) == 10
    quantities = [[row[1] for row in of] for _, of in groupby(rows, key=lambda row: row[0])]
    assert all(of == quantities[0] for of in quantities)
    sort = "return document.querySelectorAll('.table thead th')[3].ariaSort"
    opened.execute_script("document.querySelectorAll('.table thead button')[3].click()")
    assert opened.execute_script(sort) == "descending"


@pytest.mark.external
def test_names_and_numbers_are_sorted_as_people_do(opened):
    call = "return arguments[0].sort(compared)"
    names = ["vgg16", "resnet50", "densenet121", "alexnet", "resnet18"]
    expected = ["alexnet", "densenet121", "resnet18", "resnet50", "vgg16"]
    assert opened.execute_script(call, names) == expected
    assert opened.execute_script(call, ["n/a", "3.5 (2)", "−16.7", "+0.2"]) == [
        "−16.7", "+0.2", "3.5 (2)", "n/a",
    ]  # fmt: skip


@pytest.mark.external
def test_choices_of_one_are_not_shown(opened):
    hidden = """
    return [...document.querySelectorAll(".choices label")].filter((one) => one.hidden)
      .map((one) => getComputedStyle(one).display);
    """
    opened.execute_script("document.querySelector('.choices').fill.closest('label').hidden = true")
    assert opened.execute_script(hidden) == ["none"]


@pytest.mark.external
@pytest.mark.parametrize("width", [400, 800, 1280, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_width_light_and_dark(opened, results, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    opened.get((results / "index.html").as_uri())
    wait(opened, "document.querySelectorAll('.plot[data-drawn]').length === 2")
    needed = opened.execute_script("return document.documentElement.scrollWidth")
    assert needed <= width
    ink, paper = opened.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    is_dark = [sum(map(int, colour[4:-1].split(","))) < 384 for colour in (ink, paper)]
    assert is_dark == [scheme == "light", scheme == "dark"]


@pytest.mark.external
def test_everything_has_a_name_and_plots_are_drawn(opened):
    unnamed = opened.execute_script(
        """
        return [...document.querySelectorAll("select, input, canvas, button, pre")]
          .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
          .map((one) => one.outerHTML);
        """
    )
    assert unnamed == []
    n_lines = "return document.querySelectorAll('#over-area svg .mark-line path').length"
    assert opened.execute_script(n_lines) >= 8
    unlabelled = "return document.querySelectorAll('.plot svg:not([aria-label])').length"
    assert opened.execute_script(unlabelled) == 0
