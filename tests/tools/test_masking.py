"""Images as people have them: which are taken, which refused, and that before the work."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import igmask
from igmask import kernels
from igmask.errors import InputError
from igmask.kernels import select, square_scores

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
OF_BYTES = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)


class Never(nn.Module):
    """A network that must not be asked: what is wrong is seen before."""

    def forward(self, _):
        raise AssertionError("the network has run")


@pytest.fixture
def single(network):
    return network.float()


@pytest.fixture
def image():
    return torch.from_numpy(OF_BYTES).permute(2, 0, 1) / 255


def saved(folder):
    Image.fromarray(OF_BYTES).save(folder / "x.png")
    return folder / "x.png"


# The same image as people have it, below a folder.
KINDS = {
    "bytes (H, W, C)": lambda _: OF_BYTES,
    "bytes (C, H, W)": lambda _: OF_BYTES.transpose(2, 0, 1),
    "negative strides": lambda _: np.ascontiguousarray(OF_BYTES[::-1])[::-1],
    "bytes, tensor (H, W, C)": lambda _: torch.from_numpy(OF_BYTES),
    "bytes, tensor (C, H, W)": lambda _: torch.from_numpy(OF_BYTES).permute(2, 0, 1),
    "array": lambda _: OF_BYTES.astype(np.float32) / 255,
    "array of doubles": lambda _: OF_BYTES / 255,
    "array of another order": lambda _: (OF_BYTES / 255).astype(">f8"),
    "tensor (H, W, C)": lambda _: torch.from_numpy(OF_BYTES) / 255,
    "picture": lambda _: Image.fromarray(OF_BYTES),
    "path": saved,
    "name": lambda folder: str(saved(folder)),
}


def masked_by_hand(image, network, p, *, mode="keep", **attribution):
    """Pixel by pixel, square by square."""
    values = igmask.integrated_gradients(network, image[None], **attribution).values
    chosen = select(square_scores(values), p)[0]
    found = image.clone()
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            if bool(chosen[y // 3, x // 3]) != (mode == "keep"):
                found[:, y, x] = 0
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_taken_as_people_have_it(single, image, tmp_path, kind):
    given = KINDS[kind](tmp_path)
    expected = masked_by_hand(image, single, 40, n_steps=3)
    assert 0 < int((expected == 0).all(dim=0).sum()) < 180
    found = igmask.mask_image(given, single, p=40, n_steps=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    kept = torch.rand(4, 5, generator=torch.manual_seed(0)) < 0.5
    expected = kernels.occlude(image[None], kept[None])[0]
    torch.testing.assert_close(igmask.occlude(given, kept), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA"])
def test_pictures_of_every_mode_become_what_files_do(single, tmp_path, mode):
    picture = Image.fromarray(OF_BYTES).convert(mode)
    expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
    all_kept = torch.ones(4, 5, dtype=torch.bool)
    torch.testing.assert_close(igmask.occlude(picture, all_kept), expected, rtol=0, atol=1e-7)


def test_pictures_of_16_bits_are_refused_as_files_are(single):
    deep = Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16))
    with pytest.raises(InputError, match="the image: its mode is I;16"):
        igmask.mask_image(deep, single)


def test_what_is_no_tensor_goes_to_the_networks_dtype(network):
    found = igmask.mask_image(OF_BYTES, network, n_steps=3)
    expected = igmask.mask_image(
        torch.from_numpy(OF_BYTES).permute(2, 0, 1).double() / 255, network, n_steps=3
    )
    assert found.dtype == torch.float64
    assert found.equal(expected)


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_several_p_have_an_axis_in_front(single, image, mode):
    images = torch.stack([image, image.flip(1)])
    found = igmask.mask_image(images, single, [70, np.float32(30)], mode=mode, n_steps=3)
    assert found.shape == (2, 2, 3, 12, 15)
    for of_p, p in zip(found, (70, 30), strict=True):
        for of_image, one in zip(of_p, images, strict=True):
            assert of_image.equal(masked_by_hand(one, single, p, mode=mode, n_steps=3))
    assert igmask.mask_image(image, single, (50,), n_steps=3).shape == (1, 3, 12, 15)


@pytest.mark.parametrize("several", [np.array([70, 30]), torch.tensor([70.0, 30.0])])
def test_p_may_be_an_array_or_a_tensor(single, image, several):
    expected = igmask.mask_image(image, single, [70, 30], n_steps=3)
    assert igmask.mask_image(image, single, several, n_steps=3).equal(expected)
    one = several[0].reshape(())
    assert igmask.mask_image(image, single, one, n_steps=3).equal(expected[0])


@pytest.mark.parametrize("target", [3, np.int64(3), [3], torch.tensor([3])])
def test_the_class_may_be_a_number(single, image, target):
    expected = masked_by_hand(image, single, 50, n_steps=3, target=torch.tensor([3]))
    assert igmask.mask_image(image, single, n_steps=3, target=target).equal(expected)


def test_rounding_is_forgiven_and_four_axes_are_a_batch(single, image):
    for dtype in (torch.bfloat16, torch.float16):
        low = image.to(dtype).float()
        igmask.mask_image(low[None] + 1e-4, single, n_steps=2)
    empty = igmask.mask_image(image[None][:0], single, n_steps=2)
    assert empty.shape == (0, 3, 12, 15)


NORMALISED = (torch.rand(3, 9, 9) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
NO_IMAGES = [
    (NORMALISED, "leave that to the model: igmask.load_model puts it there"),
    (NORMALISED[None].numpy(), "leave that to the model"),
    (torch.full((3, 9, 9), -0.2), "go from -0.2 to -0.2"),
    (torch.full((3, 9, 9), 1.01), "go from 1.01 to 1.01"),
    (torch.rand(3, 9, 9) * 255, "divide them by 255$"),
    (np.random.default_rng(0).random((9, 9, 3)) * 65535, "divide them by 65535$"),
    (torch.full((3, 9, 9), torch.nan), "NaN or infinite"),
    (torch.full((3, 9, 9), torch.inf), "NaN or infinite"),
    (torch.ones(3, 9, 9, dtype=torch.int64), "got torch.int64; divide it by the value of white"),
    (np.ones((9, 9, 3), dtype=np.uint16), "got torch.uint16; divide it"),
    (np.ones((9, 9, 3), dtype=bool), "got torch.bool"),
    (np.array("x.png"), "an array of <U5 is no image"),
    (np.array([[None]]), "an array of object is no image"),
    (torch.rand(9, 9), r"got \(9, 9\); grey needs an axis"),
    (torch.rand(1, 1, 3, 9, 9), r"must be \(C, H, W\), and a batch \(N, C, H, W\), got"),
    ([torch.rand(3, 9, 9)], r"a batch one tensor \(N, C, H, W\) or array, got list"),
    (torch.rand(3, 9, 9).to(torch.float8_e4m3fn), "ordinary tensor, got torch.float8_e4m3fn"),
    (torch.rand(3, 9, 9).to_sparse(), "ordinary tensor, got torch.float32, torch.sparse_coo"),
    (torch.rand(3, 9, 9, device="meta"), "ordinary tensor, got .* on meta"),
    (None, "got NoneType"),
    ("no such.png", "no such.png: there is no such file"),
]


@pytest.mark.parametrize(("given", "message"), NO_IMAGES)
def test_what_is_no_image_is_refused_before_the_network_runs(given, message):
    with pytest.raises(InputError, match=message):
        igmask.mask_image(given, Never().eval())
    with pytest.raises(InputError, match=message):
        igmask.occlude(given, torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "kept"}, "unknown mode 'kept'"),
        ({"score": "best"}, "unknown score 'best'; choose from positive"),
        ({"by": "squares"}, "unknown selection 'squares'; choose from mass"),
        ({"fill": "pink"}, "unknown fill 'pink'; choose from black"),
        ({"fill": "mean"}, "needs the mean"),
        ({"fill": "mean", "mean": (0.5, 0.5)}, "mean must be 3 numbers in"),
        ({"fill": "mean", "mean": (124, 116, 104)}, r"\[0, 1\], a channel, got \(124, 116, 104\)"),
        ({"fill": "mean", "mean": "grey"}, "mean must be 3 numbers"),
        ({"side": 0}, "side must be at least 1"),
        ({"side": 1.5}, "side must be an integer, got 1.5"),
        ({"p": 0}, r"p must be in \(0, 100\]"),
        ({"p": [50, 101]}, "got 101"),
        ({"p": 12.345}, "two decimals"),
        ({"p": "50%"}, r"p must be a number in \(0, 100\], or a list of them, got '50%'"),
        ({"p": float("nan")}, "got nan"),
        ({"p": []}, r"got \[\]"),
        ({"p": None}, "got None"),
        ({"p": True}, "got True"),
        ({"p": torch.tensor([[50.0]])}, r"got tensor\(\[\[50"),
        ({"target": "cat"}, "got str 'cat'"),
        ({"n_steps": "many"}, "n_steps must be"),
    ],
)
def test_wrong_options_are_refused_before_the_network_runs(options, message):
    with pytest.raises(InputError, match=message):
        igmask.mask_image(torch.rand(3, 9, 9), Never().eval(), **options)


@pytest.mark.parametrize(
    ("kept", "options", "message"),
    [
        (torch.ones(1, 3, 3), {}, r"must be a tensor \(N, P, Q\) of bool, got torch.float32"),
        ([[True]], {}, "must be a tensor"),
        (torch.ones(2, 3, 3, dtype=torch.bool), {}, "2 masks do not fit 1 images"),
        (torch.ones(1, 2, 3, dtype=torch.bool), {}, r"has \(3, 3\) squares of side 3"),
        (torch.ones(1, 3, 3, dtype=torch.bool), {"fill": "pink"}, "unknown fill 'pink'"),
        (torch.ones(1, 3, 3, dtype=torch.bool), {"side": "3"}, "side must be an integer"),
    ],
)
def test_masks_that_do_not_fit_are_refused(kept, options, message):
    with pytest.raises(InputError, match=message):
        igmask.occlude(torch.rand(1, 3, 9, 9), kept, **options)


def test_the_mean_may_be_plain_numbers(image):
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    found = igmask.occlude(image, nothing, fill="mean", mean=MEAN.tolist())
    torch.testing.assert_close(found, MEAN.view(3, 1, 1).expand_as(image))


def test_a_fill_may_be_a_picture(single, image, turned):
    black, other = (
        igmask.mask_image(image, single, 40, n_steps=3, fill=f) for f in ("black", turned)
    )
    is_filled = (black == 0).all(dim=0)
    assert is_filled.any()
    assert other.equal(torch.where(is_filled, image.flip(1), image))
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    assert igmask.occlude(image, nothing, fill=turned).equal(image.flip(1))


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_last_of_another_number_are_named(network, channels):
    with pytest.raises(InputError, match=f"seems to have {channels} channels last"):
        igmask.mask_image(np.zeros((16, 16, channels), np.float32), network)


def test_a_p_below_1_is_a_warning(network):
    image = torch.rand(3, 9, 9, dtype=torch.float64)
    with pytest.warns(UserWarning, match="p = 0.5 means 0.5 %; write 50 if 50 % is meant"):
        igmask.mask_image(image, network, 0.5, n_steps=2)
