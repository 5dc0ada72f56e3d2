"""A model of every family of timm against Captum, with weights drawn at random.

In float64 the two agree. In float32 both are off from that, ours by little more in the median of
some images. Near the kink of a ReLU either may take another side, a thousandth at once.

Many minutes of work, so not run unless asked for:
`pip install timm==1.0.31 && pytest -m zoo -k timm`.
With IGMASK_TIMM_TABLE=docs/timm.md a run also writes what it found, as far as it came.
"""

import datetime
import gc
import os
from pathlib import Path

import captum
import captum.attr
import pytest
import torch
from torch import nn

import igmask
from igmask.engine.ready import prepare

# The smallest of the likely ones, family:model.
FAMILIES = dict(
    pair.split(":")
    for pair in [
        "beit:beit_base_patch16_224",
        "byoanet:halonet_h1",
        "byobnet:mobileone_s1",
        "cait:cait_xxs24_224",
        "coat:coat_tiny",
        "convit:convit_tiny",
        "convmixer:convmixer_768_32",
        "convnext:convnext_atto_rms",
        "cpubone:cpubone_nano",
        "crossvit:crossvit_tiny_240",
        "csatv2:csatv2",
        "cspnet:cs3darknet_focus_s",
        "cspnext:cspnext_tiny",
        "davit:davit_tiny",
        "deepseek_vit:deepseek_vit_412m",
        "deit:deit_tiny_patch16_224",
        "densenet:densenet121",
        "dla:dla34",
        "dpn:dpn68",
        "edgenext:edgenext_xx_small",
        "efficientformer:efficientformer_l1",
        "efficientformer_v2:efficientformerv2_s0",
        "efficientnet:tinynet_c",
        "efficientvim:efficientvim_m1",
        "efficientvit_mit:efficientvit_b0",
        "efficientvit_msra:efficientvit_m0",
        "eva:vit_tiny_patch16_dinov3_qkvb",
        "fasternet:fasternet_t0",
        "fastvit:fastvit_s12",
        "focalnet:focalnet_tiny_srf",
        "gcvit:gcvit_xxtiny",
        "gemma4_vit:gemma4_vit_167m",
        "ghostnet:ghostnet_050",
        "hardcorenas:hardcorenas_b",
        "hgnet:hgnetv2_b0",
        "hiera:hiera_tiny_224",
        "hieradet_sam2:sam2_hiera_tiny",
        "hrnet:hrnet_w18_small",
        "iformer:iformer_t",
        "inception_next:inception_next_atto",
        "inception_resnet_v2:inception_resnet_v2",
        "inception_v3:inception_v3",
        "inception_v4:inception_v4",
        "lcnetv2:lcnetv2_small",
        "levit:levit_384_s8",
        "lowformer:lowformer_b0",
        "mambaout:mambaout_femto",
        "maxxvit:maxvit_pico_rw_256",
        "metaformer:caformer_s18",
        "mlp_mixer:gmlp_ti16_224",
        "mobilenetv3:mobilenetv3_small_050",
        "mobilenetv5:mobilenetv5_base",
        "mobilevit:mobilevit_xxs",
        "mvitv2:mvitv2_tiny",
        "naflexvit:naflexvit_base_patch16_siglip",
        "nasnet:nasnetalarge",
        "nest:nest_tiny",
        "nextvit:nextvit_small",
        "nfnet:nf_regnet_b0",
        "pit:pit_xs_224",
        "pnasnet:pnasnet5large",
        "pvt_v2:pvt_v2_b0",
        "qwen3_vit:qwen3_vit_88m",
        "rdnet:rdnet_tiny",
        "regnet:regnetx_004_tv",
        "repghost:repghostnet_050",
        "repvit:repvit_m1",
        "res2net:res2next50",
        "resnest:resnest14d",
        "resnet:gluon_seresnext50_32x4d",
        "resnetv2:resnetv2_18",
        "rexnet:rexnet_100",
        "selecsls:selecsls42",
        "senet:legacy_seresnet18",
        "sequencer:sequencer2d_s",
        "shvit:shvit_s1",
        "sknet:skresnet18",
        "starnet:starnet_s050",
        "swiftformer:swiftformer_xs",
        "swin_transformer:swin_tiny_patch4_window7_224",
        "swin_transformer_v2:swinv2_tiny_window8_256",
        "swin_transformer_v2_cr:swinv2_cr_tiny_224",
        "tiny_vit:tiny_vit_5m_224",
        "tnt:tnt_s_legacy_patch16_224",
        "tresnet:tresnet_m",
        "twins:twins_svt_small",
        "vgg:vgg11",
        "visformer:visformer_tiny",
        "vision_transformer:vit_tiny_patch16_224",
        "vision_transformer_hybrid:vit_tiny_r_s16_p8_224",
        "vision_transformer_relpos:vit_srelpos_small_patch16_224",
        "vision_transformer_sam:samvit_base_patch16_224",
        "vitamin:vitamin_small_224",
        "volo:volo_d1_224",
        "vovnet:ese_vovnet19b_slim_dw",
        "xception:xception",
        "xception_aligned:xception41p",
        "xcit:xcit_nano_12_p8_224",
    ]
)
# Used with images of 546² and 768²: a quarter of an hour each, and more memory than many have.
SMALLER = dict.fromkeys(("deepseek_vit", "gemma4_vit", "qwen3_vit"), 224)
COARSE = {"deepseek_vit"}  # compute in float32 within, whatever they are given
N_IMAGES, N_MORE = 5, 20
N_STEPS = 2  # a power of two: Captum rounds its weights to float32


@pytest.fixture(scope="session")
def rows():
    """Lines of the table, written after each model if they are wanted."""
    return []


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")  # timm's, of itself
@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_are_captums(rows, family, monkeypatch):
    timm = pytest.importorskip("timm")
    # What one network has freed, the next cannot use piece by piece.
    monkeypatch.setattr("igmask.engine.ready.keep_freed_memory", lambda: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        side = SMALLER.get(family)
        sized = {"img_size": side} if side else {}
        model = drawn(timm.create_model(FAMILIES[family], **sized))
        size = timm.data.resolve_model_data_config(model)["input_size"]
        size = (size[0], side, side) if side else size
        images = torch.rand(N_IMAGES, *size)
        others = torch.rand(N_MORE, *size)
    expected, found = by_captum(model, images.double()), by_igmask(model, images.double())
    split = prepare(model, images.double(), precision="fp32").split
    error = float((found - expected).norm() / expected.norm())
    exact, allowed = f"{error:.0e}", 1e-10
    if family in COARSE:
        exact, allowed = f"{exact}, float32 within", 2**-20
    elif error > allowed:  # a network may make much of a rounding
        shaken = by_captum(model, images.double() * (1 + 2**-52))
        allowed = float((shaken - expected).norm() / expected.norm())
        exact += f", of Captum's own {allowed:.0e}"
    more = in_float32(model, images, expected)
    said = f"{more:.2f}"
    if more > 2.5:  # by luck with so few images?
        images = torch.cat([images, others])
        expected = by_captum(model.double(), images.double())
        more = in_float32(model, images, expected)
        said = f"{more:.2f} of {len(images)}"
    norms = sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    ends = ", ".join(split.ends) or f"none: {split.why_not}"
    rows.append(
        f"| {family} | {FAMILIES[family]} | {size[-1]}² | {ends} | {', '.join(split.begins[:2])} "
        f"| {split.n_folded} of {norms} | {split.by} | {split.seconds:.1f} | {exact} | {said} |"
    )
    if path := os.environ.get("IGMASK_TIMM_TABLE"):
        Path(path).write_text(table(rows))
    del model, split
    gc.collect()
    assert error <= allowed
    assert more <= 2.5


def in_float32(model: nn.Module, images: torch.Tensor, expected: torch.Tensor) -> float:
    """Our relative error over Captum's, medians of the images."""

    def median_error(found: torch.Tensor) -> float:
        error = (found.double() - expected).flatten(1).norm(dim=1)
        return float((error / expected.flatten(1).norm(dim=1)).median())

    ours = median_error(by_igmask(model.float(), images))
    return ours / median_error(by_captum(model, images))


def by_captum(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    of_model = captum.attr.IntegratedGradients(model)
    parts = [
        of_model.attribute(image[None], target=3, method="riemann_right", n_steps=N_STEPS)
        for image in images
    ]
    return torch.cat(parts)


def by_igmask(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return igmask.integrated_gradients(
        model, images, of="logit", target=3, rule="right", n_steps=N_STEPS
    ).values


def drawn(model: nn.Module) -> nn.Module:
    """The network in float64 and evaluation mode, no parameter or statistic left constant."""
    for parameter in model.requires_grad_(False).parameters():
        if parameter.numel() and parameter.min() == parameter.max():
            scales = parameter.flatten()[0] > 0
            parameter.uniform_(0.5, 1.5) if scales else parameter.normal_(std=0.1)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


def table(rows: list[str]) -> str:
    """The page docs/timm.md."""
    import timm

    versions = f"timm {timm.__version__}, torch {torch.__version__}, captum {captum.__version__}"
    head = f"""\
# A network of every family of timm, against Captum

{versions}; {datetime.date.today()}.

    IGMASK_TIMM_TABLE=docs/timm.md pytest -m zoo -k timm

The rows are of runs in parts, on one machine; {", ".join(SMALLER)} are used with images of 546² and
768², and were compared at 224².

Weights, statistics and images are random, and no parameter is left constant; float64, a logit,
black baseline, rule right, m = {N_STEPS}. *Stem* says where it ends, *then* what follows (the first
two), *folded* how many batch norms went into the layers before them, *by* what took the graph, *s*
the seconds of taking, cutting and comparing it; the error is the norm of the difference to Captum
relative to its norm, in float64; *of Captum's own* is what comes of changing the images by one part
in 2⁵² there, which a network may make much of; {", ".join(COARSE)} norms in float32 whatever it is
given. *float32* is our error there over Captum's, medians
of {N_IMAGES} images, and of {N_IMAGES + N_MORE} where it would be more than 2.5. Near the kink
of a ReLU either may take another side, at which the gradient jumps by about a thousandth, and a
median of few images may be of one that does: seven draws of gluon_seresnext50's weights gave 0.11,
0.32, 1.3, 2.0, 2.3, 3.0 and 16, of 25 images each.

| family | model | pixels | stem | then | folded | by | s | error | float32 |
|---|---|---|---|---|---|---|---|---|---|
"""
    absent = [family for family in FAMILIES if not any(f"| {family} |" in row for row in rows)]
    rest = f"\nNot run for this page: {', '.join(absent)}.\n" if absent else ""
    return head + "\n".join(rows) + "\n" + rest
