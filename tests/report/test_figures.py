"""Figures: which appear, what they depend on, and names and data that are out of the ordinary."""

import struct
from collections import Counter
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image as png
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from igmask import arrays
from igmask.errors import InputError
from igmask.kernels import grid, pack, select
from igmask.report import curves, drawing, examples
from igmask.report.curves import curves as write_curves
from igmask.report.drawing import draw_explanation
from igmask.report.examples import examples as write_examples
from igmask.report.examples import spread
from igmask.report.rightness import chance

N, SIZE, SIDE = 12, 8, 3
CLASSES = ["cat", "dog", "bird"]
INDEX = pd.DataFrame(
    {"name": [f"{i:02}.png" for i in range(N)], "label": np.arange(N) % 4, "position": range(N)}
)


def write(path: Path, values: np.ndarray, records: pd.DataFrame, **settings) -> Path:
    with arrays.writing(path, values.dtype, values.shape[1:]) as writer:
        writer.append(values)
    records = records.reset_index(drop=True).assign(crc32=writer.checksums)
    arrays.write_records(arrays.records_of(path), records, settings)
    return path


def study(
    folder: Path,
    *,
    modes: tuple[str, ...] = ("keep", "drop"),
    ps: tuple[float, ...] = (90.0, 50.0),
    fills: tuple[str, ...] = ("black",),
    classes: tuple[str, ...] = tuple(CLASSES),
    shards: tuple[int, ...] = (0, 5, N),
    target: str = "predicted",
    seed: int = 0,
) -> list[Path]:
    """The files of a study of one model, its images and scores in two shards."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    parts = rng.random((N, 2, *grid(SIZE, SIZE, SIDE)), dtype=np.float32)
    common = {"class_names": list(classes), "model": {"mean": [0.5, 0.4, 0.3]}, "side": SIDE}
    common |= {"attribution": {"target": target}, "dataset": {"source": "folder"}}
    common |= {"score": "positive"}
    files = []
    for start, end in pairwise(shards):
        part, records = slice(start, end), INDEX[start:end]
        files += [
            write(folder / f"i{start}.npy", images[part], records, step="prepare", **common),
            write(
                folder / f"s{start}.npy",
                parts[part],
                records.assign(target=1, predicted=1),
                step="attribute",
                **common,
            ),
        ]
    for p in ps:
        mask = select(torch.from_numpy(parts[:, 0]), p)
        made_by = common | {"step": "mask", "p": p, "grid": list(mask.shape[1:])}
        files.append(write(folder / f"m{p}.npy", pack(mask).numpy(), INDEX, **made_by))
    said = INDEX[["name", "label"]].assign(
        draw=0, predicted=1, correct=INDEX["label"] == 1, probability_predicted=0.25, area_kept=0.4
    )
    conditions = [("original", None, None)]
    conditions += [(mode, p, fill) for fill in fills for mode in modes for p in ps]
    for mode, p, fill in conditions:
        for mask in ["none"] if p is None else ["selection", "random"]:
            path = folder / f"{mode}-{p}-{fill}-{mask}.parquet"
            made_by = common | {"step": "evaluate", "mode": mode, "p": p, "fill": fill}
            arrays.write_records(path, said, made_by | {"mask": mask})
            files.append(path)
    return files


def draw(files: list[Path], output: Path, n_images: int = 2) -> dict[str, bytes]:
    """The kinds of pictures written for a model called net, and their bytes."""
    write_examples(files, output=output, model_name="net", n_images=n_images)
    return {path.stem.removesuffix("-net"): path.read_bytes() for path in output.iterdir()}


def inches(data: bytes) -> tuple[float, float]:
    """Width and height that the header of a PNG declares, at the 200 dots an inch of figures."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width / 200, height / 200


def test_a_study_with_both_modes_has_four_pictures(tmp_path):
    pictures = draw(study(tmp_path), tmp_path / "out")
    assert pictures.keys() == {"attributions", "keep", "drop", "keep_drop"}
    for data in pictures.values():
        width, height = inches(data)
        assert 3 < width < 8
        assert 3 < height < 6


@pytest.mark.parametrize(("modes", "expected"), [(("keep",), {"keep"}), (("drop",), {"drop"})])
def test_a_missing_mode_leaves_its_pictures_out(tmp_path, modes, expected):
    pictures = draw(study(tmp_path, modes=modes), tmp_path / "out")
    assert pictures.keys() == {"attributions"} | expected


def test_without_masks_the_attributions_remain(tmp_path):
    assert draw(study(tmp_path, modes=(), ps=()), tmp_path / "out").keys() == {"attributions"}


def test_one_image_and_one_p(tmp_path):
    pictures = draw(study(tmp_path, ps=(12.5,)), tmp_path / "out", n_images=1)
    assert len(pictures) == 4
    assert all(inches(data)[1] < 3 for data in pictures.values())


def test_more_images_than_there_are(tmp_path):
    files = study(tmp_path, modes=(), ps=())
    assert draw(files, tmp_path / "all", N) == draw(files, tmp_path / "more", N + 5)


def test_the_same_files_make_the_same_bytes_in_any_shards(tmp_path):
    files = study(tmp_path / "two")
    first = draw(files, tmp_path / "first")
    assert draw(files, tmp_path / "again") == first
    assert draw(study(tmp_path / "one", shards=(0, N)), tmp_path / "whole") == first


def test_arrays_may_come_with_their_records(tmp_path):
    files = study(tmp_path, modes=("keep",), ps=(50.0,))
    both = files + [arrays.records_of(file) for file in files]
    assert draw(both, tmp_path / "both") == draw(files, tmp_path / "arrays")


def test_pictures_depend_on_what_they_show(tmp_path):
    files = study(tmp_path)
    before = draw(files, tmp_path / "before")
    bits = tmp_path / "m50.0.npy"
    records, made_by = arrays.read_records(arrays.records_of(bits))
    write(bits, ~np.array(arrays.read_array(bits)) & 1, records, **made_by)
    after = draw(files, tmp_path / "after")
    assert all(before[kind] != after[kind] for kind in before)

    scores = tmp_path / "s0.npy"
    records, made_by = arrays.read_records(arrays.records_of(scores))
    write(scores, np.array(arrays.read_array(scores))[:, ::-1], records, **made_by)
    turned = draw(files, tmp_path / "turned")
    assert [kind for kind in after if after[kind] != turned[kind]] == ["attributions"]


def test_masked_pixels_are_black_where_the_first_fill_says_so(tmp_path):
    def n_pixels(fills: tuple[str, ...], colour: tuple[float, ...]) -> int:
        folder = tmp_path / "-".join(fills)
        draw(study(folder, modes=("drop",), ps=(90.0,), fills=fills), folder / "out")
        pixels = png.imread(folder / "out" / "drop-net.png")[..., :3]
        return int((np.abs(pixels - colour) < 0.003).all(axis=-1).sum())

    black, mean = (0.0, 0.0, 0.0), (0.5, 0.4, 0.3)
    square = (1.2 * 200 * SIDE / SIZE) ** 2  # dots, a little less than drawn
    assert n_pixels(("black", "mean"), black) > 5 * square
    assert n_pixels(("black", "mean"), mean) < square / 10
    assert n_pixels(("mean", "black"), mean) > 5 * square


def test_a_fill_that_is_a_picture_is_drawn(tmp_path, monkeypatch, turned):
    tables = {}
    monkeypatch.setattr(
        examples, "write_table", lambda paths, shown, **_: tables.update({paths[0]: shown})
    )
    files = study(tmp_path, modes=("drop",), ps=(50.0,), fills=(turned,))
    write_examples(files, output=tmp_path, model_name="net", n_images=2)
    original, masked = (np.stack(column.pictures) for column in tables[tmp_path / "drop-net.png"])
    changed = (masked != original).any(axis=-1)
    assert 0 < changed.mean() < 1
    np.testing.assert_array_equal(masked[changed], original[:, ::-1][changed])


CLASS_NAMES = {
    "missing": (),
    "long": ("cat", "a dog's name that is far too long " * 3),
    "accents": ("cat", "Σκύλος, été"),
    "no glyph": ("cat", "猫\U00012000"),
    "no formula": ("cat", "$5_{ bill$"),
    "empty": ("cat", ""),
}


def first(index):
    return examples.spread(index["label"].to_numpy(), 2)


@pytest.mark.parametrize("classes", CLASS_NAMES.values(), ids=CLASS_NAMES)
def test_class_names(tmp_path, classes):
    plain = draw(study(tmp_path / "plain", modes=()), tmp_path / "plain" / "out")
    named = draw(study(tmp_path / "named", modes=(), classes=classes), tmp_path / "named" / "out")
    assert named["attributions"] != plain["attributions"]


@pytest.mark.parametrize(("target", "said"), [("predicted", "predicted"), ("label", "true")])
def test_attributions_say_which_class_they_are_for(tmp_path, target, said):
    files = study(tmp_path, target=target, modes=())
    attribution, *_ = examples.attribution_columns(examples.read_examples(files, first))
    assert attribution.title == f"attribution\nfor {said} class"
    assert attribution.captions == ["dog"] * 2


def test_conditions_stand_in_the_order_of_p(tmp_path):
    files = study(tmp_path, ps=(12.5, 90.0, 50.0))
    columns = examples.condition_columns(examples.read_examples(files, first))
    assert list(columns["keep"]) == [90.0, 50.0, 12.5]
    assert columns["drop"][12.5].title == "drop 12.5 %\n40 % left"
    assert columns["drop"][12.5].captions == ["✓ dog\n25 %", "✗ dog\n25 %"]


def test_as_many_random_squares_stand_beside_keep_and_drop(tmp_path, monkeypatch):
    tables = {}
    monkeypatch.setattr(
        examples, "write_table", lambda paths, shown, **_: tables.update({paths[0].stem: shown})
    )
    files = study(tmp_path)
    write_examples(files, output=tmp_path, model_name="net", n_images=2)
    columns = tables["keep_drop-net"]
    assert [column.title.split("\n")[0] for column in columns] == [
        "original", "keep 50 %", "keep random squares", "drop 50 %", "drop random squares",
    ]  # fmt: skip
    original, keep, random, drop, others = (np.stack(list(one.pictures)) for one in columns)
    for chosen, rest in ((keep, drop), (random, others)):
        np.testing.assert_allclose(chosen + rest, original, atol=1e-6)  # masked pixels are black
    shown = [(picture > 0).any(axis=-1).sum(axis=(1, 2)) for picture in (keep, random)]
    np.testing.assert_allclose(*shown, atol=1)  # a black pixel of the original
    assert not np.array_equal(keep, random)
    without = [file for file in files if "random" not in file.name]
    write_examples(without, output=tmp_path, model_name="net", n_images=2)
    assert len(tables["keep_drop-net"]) == 3


def test_only_the_selection_is_masked(tmp_path):
    files = study(tmp_path)
    found = examples.read_examples(files, lambda index: np.arange(N))
    positive, negative = arrays.read_array(tmp_path / "s0.npy")[0, :, 0, 0]
    assert found.attribution[0, 0, :SIDE].tolist() == [positive - negative] * SIDE
    columns = examples.condition_columns(found)
    original, keep, drop = (columns[mode] for mode in ("original", "keep", "drop"))
    assert (keep[90.0].pictures + drop[90.0].pictures == original[100.0].pictures).all()
    kept = keep[50.0].pictures.any(axis=-1)
    assert (kept == found.masks[50.0]).mean() > 0.99  # a black pixel may be kept


def test_long_lines_are_cut_short_each():
    assert drawing.fit_text("12345\n123456\n1234 6", 5) == "12345\n1234…\n1234…"


def test_chosen_images_are_spread_over_the_classes():
    labels = np.arange(100) % 10
    for n_images in (1, 5, 10):
        chosen = spread(labels, n_images)
        assert len(set(labels[chosen])) == len(set(chosen)) == n_images
    assert sorted(spread(labels, 1000)) == list(range(100))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    files = study(tmp_path)
    with pytest.raises(InputError, match="not all shards"):
        draw([file for file in files if file.name != "s5.npy"], tmp_path / "out")
    with pytest.raises(InputError, match="igmask attribute"):
        draw([file for file in files if not file.name.startswith("s")], tmp_path / "out")
    with pytest.raises(InputError, match="original"):
        draw([file for file in files if "original" not in file.name], tmp_path / "out")
    with pytest.raises(InputError, match="p = 90"):
        draw([file for file in files if file.name != "m90.0.npy"], tmp_path / "out")
    records, made_by = arrays.read_records(tmp_path / "drop-50.0-black-selection.parquet")
    records["name"] += "?"
    arrays.write_records(tmp_path / "drop-50.0-black-selection.parquet", records, made_by)
    with pytest.raises(
        InputError, match=r"drop-50.0-black-selection.parquet: records of other images"
    ):
        draw(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_explanation_shows_images_and_attributions(tmp_path):
    rng = np.random.default_rng(0)
    image, attribution = rng.random((20, 20, 3)), rng.normal(size=(7, 7))
    panels = [("original", image, "✓ cat"), ("attribution", attribution, ""), ("kept", image, "✗")]
    draw_explanation(tmp_path / "three.png", panels, title="cat.jpg")
    draw_explanation(tmp_path / "one.png", panels[:1], title="cat.jpg")
    three, one = ((tmp_path / f"{name}.png").read_bytes() for name in ("three", "one"))
    assert inches(three)[0] > 2.5 * inches(one)[0] > 5

    panels[0] = ("original", (255 * image).round().astype(np.uint8), "✓ cat")
    draw_explanation(tmp_path / "uint8.png", panels, title="cat.jpg")
    difference = png.imread(tmp_path / "uint8.png") - png.imread(tmp_path / "three.png")
    assert np.abs(difference).max() < 0.01


def test_a_heat_map_is_red_for_blue_against_and_white_at_zero(tmp_path):
    draw_explanation(tmp_path / "e.png", [("", np.array([[9.0, 0.0, -9.0]]), "")], title="")
    pixels = png.imread(tmp_path / "e.png")[..., :3]
    row = pixels[np.argmin(pixels.sum(axis=(1, 2)))]  # the darkest row crosses the three squares
    n = len(row)
    red, white, blue = row[n // 5], row[n // 2], row[-n // 5]
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    assert white.min() > 0.9


def test_a_verdict_is_coloured(tmp_path):
    def has(colour: str, caption: str) -> bool:
        draw_explanation(tmp_path / "e.png", [("", np.ones((4, 4, 3)), caption)], title="")
        pixels = png.imread(tmp_path / "e.png")[..., :3]
        return bool((np.abs(pixels - to_rgb(colour)) < 0.01).all(axis=-1).any())

    green, red = "#00734F", "#C04000"
    assert has(green, "✓ cat")
    assert has(red, "✗ cat")
    assert not has(green, "cat ✓")
    assert not has(red, "✓ cat")


def test_an_attribution_of_zeros_is_drawn(tmp_path):
    draw_explanation(tmp_path / "e.png", [("", np.zeros((4, 4)), "")], title="")
    assert inches((tmp_path / "e.png").read_bytes())[0] > 2


ACCURACY = """\
model,mode,p,fill,mask,n,top1,ci_low,ci_high,area_kept
a,original,,,none,100,80,75,85,100
a,keep,90,black,selection,100,60,55,65,60
a,keep,90,black,random,100,30,25,35,61
a,keep,50,black,selection,100,40,35,45,20
a,keep,50,black,random,100,20,15,25,19
a,drop,90,black,selection,100,20,15,25,40
a,drop,90,black,random,100,25,20,30,39
a,drop,50,black,selection,100,50,45,55,80
a,drop,50,black,random,100,45,40,50,81
"""


def plot(folder: Path, text: str) -> dict[str, bytes]:
    folder.mkdir()
    (folder / "accuracy.csv").write_text(text, encoding="utf-8")
    write_curves(folder / "accuracy.csv", output=folder / "out")
    return {path.stem: path.read_bytes() for path in (folder / "out").iterdir()}


def test_curves_depend_on_the_numbers_only(tmp_path):
    first = plot(tmp_path / "first", ACCURACY)
    assert first.keys() == {"accuracy-p", "accuracy-area"}
    assert all(3 < inches(data)[0] < 8 for data in first.values())
    assert plot(tmp_path / "again", ACCURACY) == first
    for number, (old, new) in enumerate(
        [("60,55", "63,55"), (",55,65", ",50,65"), ("100,30", "100,33"), ("100,80", "100,88")]
    ):
        other = plot(tmp_path / str(number), ACCURACY.replace(old, new, 1))
        assert all(other[kind] != first[kind] for kind in first)


def test_a_curve_has_points_and_intervals():
    table = pd.read_csv(StringIO(ACCURACY))
    axes = Figure().subplots()
    curves._draw_curve(axes, table[table["mode"] == "keep"], "area_kept", "black", "o")
    points, *_, random = axes.lines
    assert points.get_xydata().tolist() == [[20, 40], [60, 60]]
    assert random.get_xydata().tolist() == [[19, 20], [61, 30]]
    bars = axes.collections[0].get_segments()
    assert [bar.tolist() for bar in bars] == [[[20, 35], [20, 45]], [[60, 55], [60, 65]]]


def test_every_control_has_a_curve_and_a_key_of_its_own(tmp_path):
    """Whatever its name is: curves know of none."""
    shifted = "".join(f"{line}\n" for line in ACCURACY.splitlines() if "random" in line)
    text = ACCURACY + shifted.replace("random", "mine:other").replace("100,30", "100,37")
    table = pd.read_csv(StringIO(text))
    axes = Figure().subplots()
    curves._draw_curve(axes, table[table["mode"] == "keep"], "p", "black", "o")
    drawn = {line.get_linestyle(): line.get_ydata().tolist() for line in axes.lines[-2:]}
    assert drawn == {"--": [20, 30], "-.": [20, 37]}
    masked = table[table["mode"] != "original"]
    labels = [key.get_label() for key in curves._control_keys(masked)]
    assert labels == ["random squares", "mine:other squares"]
    pictures, others = plot(tmp_path / "both", text), plot(tmp_path / "one", ACCURACY)
    assert all(pictures[kind] != others[kind] for kind in pictures)


def test_what_guessing_gives_is_a_line_where_networks_have_as_many_classes():
    table = pd.read_csv(StringIO(ACCURACY)).assign(truth="label")
    assert chance(table) is None
    assert chance(table.assign(n_classes=8)) == 12.5
    assert chance(table.assign(n_classes=np.arange(len(table)))) is None
    assert chance(table.assign(n_classes=np.nan)) is None  # no labels
    axes = Figure().subplots()
    masked = table[table["mode"] != "original"]
    panels = [axes] * masked.groupby(["model", "fill"]).ngroups
    keys = curves.draw_against_area(panels, masked, pd.Series(dtype=float), None, 12.5)
    assert [12.5, 12.5] in [list(line.get_ydata()) for line in axes.lines]
    assert keys[-1].get_label() == "by chance, 12.5 %"


@pytest.mark.parametrize(("n", "n_columns"), [(1, 3), (6, 3), (6, 5), (7, 2)])
def test_images_stand_in_blocks_of_about_a_slides_shape_and_none_is_lost(tmp_path, n, n_columns):
    colours = [(0.1 + 0.1 * i, 0.9 - 0.1 * k, 0.4) for k in range(n_columns) for i in range(n)]
    tiles = np.array(colours).reshape(n_columns, n, 1, 1, 3)
    columns = [drawing.Column(f"c{k}", tiles[k], ["✓ yes"] * n) for k in range(n_columns)]
    drawing.write_table(tmp_path / "t.png", columns, row_names=["name"] * n, title="t")
    pixels = png.imread(tmp_path / "t.png")[..., :3]
    height, width = pixels.shape[:2]
    if n > 1:
        assert 1.1 < width / height < 2.8
    tenths, as_one = np.rint(10 * pixels), (10_000, 100, 1)
    flat = (np.abs(10 * pixels - tenths) < 0.1).all(axis=-1)
    found = Counter((tenths[flat] @ as_one).tolist())
    for colour in np.rint(10 * np.array(colours)) @ as_one:
        assert found[colour] == pytest.approx((1.3 * 200) ** 2, rel=0.05)


AREAS = """\
model,fill,mask,mode,share,n,area_kept,top1,ci_low,ci_high,agreement,probability,truth
a,black,selection,keep,0,100,0,10,5,15,10,0.1,label
a,black,selection,keep,50,100,50.5,55,45,65,55,0.5,label
a,black,selection,keep,100,100,100,80,70,90,100,0.9,label
a,black,selection,drop,0,100,100,80,70,90,100,0.9,label
a,black,selection,drop,50,100,49.5,35,25,45,35,0.3,label
a,black,selection,drop,100,100,0,10,5,15,10,0.1,label
a,black,random,keep,0,100,0,10,5,15,10,0.1,label
a,black,random,keep,50,100,50.4,25,15,35,25,0.2,label
a,black,random,keep,100,100,100,80,70,90,100,0.9,label
"""


def test_what_was_swept_is_drawn_against_area_beside_the_points_of_p(tmp_path):
    table = pd.read_csv(StringIO(AREAS))
    axes = Figure().subplots()
    curves._draw_swept(axes, table, {"keep": ("blue", "o"), "drop": ("orange", "s")})
    drawn = {
        (line.get_color(), line.get_linestyle()): line.get_xydata().tolist() for line in axes.lines
    }
    assert drawn == {
        ("blue", "-"): [[0, 10], [50.5, 55], [100, 80]],
        ("orange", "-"): [[100, 80], [49.5, 35], [0, 10]],
        ("0.4", "--"): [[0, 10], [50.4, 25], [100, 80]],
    }
    (tmp_path / "accuracy.csv").write_text(ACCURACY)
    (tmp_path / "curves.csv").write_text(AREAS)
    found = {}
    for name, areas in (("without", None), ("with", tmp_path / "curves.csv")):
        write_curves(tmp_path / "accuracy.csv", areas=areas, output=tmp_path / name)
        found[name] = {p.stem: p.read_bytes() for p in (tmp_path / name).iterdir()}
    assert found["with"]["accuracy-p"] == found["without"]["accuracy-p"]
    assert found["with"]["accuracy-area"] != found["without"]["accuracy-area"]


def rows(accuracy: str, **changes: str) -> str:
    """The rows of the table, below its heading, with some words replaced."""
    text = accuracy.split("\n", 1)[1]
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def test_every_fill_has_panels(tmp_path):
    one, two = plot(tmp_path / "1", ACCURACY), ACCURACY + rows(ACCURACY, black="mean")
    two = plot(tmp_path / "2", two.replace("a,original,,,none,100,80,75,85,100\n", "", 1))
    assert inches(two["accuracy-p"])[1] > 1.5 * inches(one["accuracy-p"])[1]
    assert inches(two["accuracy-area"])[0] > 1.5 * inches(one["accuracy-area"])[0]


def test_many_models_with_names_like_numbers_or_nothing(tmp_path):
    names = ["1", "1.0", "NA", "None", "$x$ y$", "ζ", "m7"]
    models = "".join(rows(ACCURACY).replace("a,", f"{name},") for name in names)
    pictures = plot(tmp_path / "many", ACCURACY + models)
    assert inches(pictures["accuracy-area"])[1] > 6  # three rows of panels
    without = ACCURACY + models.replace("NA,", "nan,")
    assert plot(tmp_path / "other", without)["accuracy-p"] != pictures["accuracy-p"]


def test_one_mode_one_p_no_control_no_original(tmp_path):
    head, _, keep, control, *_ = ACCURACY.splitlines()
    pictures = plot(tmp_path / "one", f"{head}\n{keep}\n")
    with_control = plot(tmp_path / "control", f"{head}\n{keep}\n{control}\n")
    assert all(pictures[kind] != with_control[kind] for kind in pictures)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ACCURACY.splitlines()[0], "no masked images"),
        ("\n".join(ACCURACY.splitlines()[:2]), "no masked images"),
        ("", "not a table of igmask: No columns"),
        ("x,y\n1,2\n", "not a table of igmask: it has no column model"),
        (ACCURACY.replace("area_kept", "other"), "area_kept"),
    ],
)
def test_a_table_without_curves_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        plot(tmp_path / "bad", text)


def test_a_figure_is_drawn_once(tmp_path, monkeypatch):
    draw, drawn = Figure.draw, []
    monkeypatch.setattr(Figure, "draw", lambda *of: drawn.append(of) or draw(*of))
    draw_explanation(tmp_path / "e.png", [("", np.ones((4, 4, 3)), "")], title="")
    assert len(drawn) == 1


def test_drawing_leaves_no_trace(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot(tmp_path / "a", ACCURACY)
    assert dict(matplotlib.rcParams) == before
    assert not [path for path in (tmp_path / "a" / "out").iterdir() if path.suffix != ".png"]
