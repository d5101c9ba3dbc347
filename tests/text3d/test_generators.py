"""Generators: the sizes of the papers, batches, gradients, precision, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_generators import TINY, inputs, points, tiny
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.text3d.fields.heads import HeadSettings
from diffdistill.text3d.generators.grid import grid_axis, sdf_on_grid
from diffdistill.text3d.generators.hyper import HyperSettings
from diffdistill.text3d.generators.modulated_conv import ModulatedConv, double
from diffdistill.text3d.generators.presets import PRESETS, GeneratorSettings, generator_of, preset
from diffdistill.text3d.generators.triplane_transformer import TriplaneSettings, attend
from diffdistill.text3d.generators.voxel_conv import VoxelConv, VoxelConvSettings, sub_voxels


def parameters(settings: GeneratorSettings) -> dict[str, int]:
    """Numbers of parameters, of the whole and of its parts."""
    with torch.device("meta"):
        made = generator_of(settings)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in made.named_children()}
    return {"all": sum(p.numel() for p in made.parameters()), **parts}


@pytest.mark.parametrize(
    ("name", "part", "exact", "published"),
    [
        ("hyper", "grid", 12_599_904, 12.6e6),
        ("hyper", "network", 348_544, 348.5e3),
        ("triplane", "all", 120_564_480, 120.5e6),
        ("voxel_conv", "all", 88_686_923, 88.7e6),
        ("voxel_conv_wide", "all", 144_798_155, 144.8e6),
        ("hyper_small", "all", 185_552, 0.19e6),
        ("triplane_small", "all", 1_114_496, 1.12e6),  # published with 2,816 of word embeddings
        ("voxel_conv_small", "all", 1_270_720, 1.27e6),
    ],
)
def test_numbers_of_parameters(name: str, part: str, exact: int, published: float) -> None:
    assert parameters(preset(name))[part] == exact
    assert abs(exact / published - 1) < (0.025 if name.endswith("small") else 1e-3)


def test_parts_of_the_paper_sizes() -> None:
    assert parameters(preset("triplane"))["blocks"] == 12 * 9_840_384  # published: 9.84 M a block
    with torch.device("meta"):
        made = generator_of(VoxelConvSettings.paper())
    maps = sum(parameter.numel() for name, parameter in made.named_parameters() if name.endswith(".map"))
    assert maps == 44_302_336  # published: 44.3 M
    assert sum(columns * rows for chain in HeadSettings((64,)).shapes(32) for rows, columns in chain) == 4352


@pytest.mark.parametrize("name", PRESETS)
def test_all_sizes_run_on_the_meta_device(name: str) -> None:
    settings = preset(name)
    with torch.device("meta"):
        made = generator_of(settings)
        given = torch.empty(2, made.prompt_dim or 4), torch.empty(2, 7, made.token_dim or 4), torch.ones(2, 7).bool()
        field = made(*given, torch.empty(2, made.noise_dim or 4))
        values, grid = field(torch.empty(1, 10, 3)), field.sdf_on_axes(*[torch.empty(3)] * 3)
    assert len(field) == 2 and field.radius == settings.radius and values.sdf.device.type == "meta"
    assert values.sdf.shape == (2, 10) and values.colour.shape == (2, 10, 3) and grid.shape == (2, 27)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_batch_of_three_is_three_batches_of_one(name: str) -> None:
    made, given, at = tiny(name), inputs(), points(3)
    field = made(**given)
    assert len(field) == 3
    own, shared = field(at), field(at[:1])
    axes = [torch.linspace(-1, 1, n) for n in (3, 4, 5)]
    grid = field.on_axes(*axes)
    for p in range(3):
        alone = made(**{key: value[p : p + 1] for key, value in given.items()})
        for found, wanted in ((own, alone(at[p : p + 1])), (shared, alone(at[:1])), (grid, alone.on_axes(*axes))):
            torch.testing.assert_close(found.sdf[p], wanted.sdf[0], rtol=0, atol=2e-5)
            torch.testing.assert_close(found.colour[p], wanted.colour[0], rtol=0, atol=2e-5)
    assert (own.sdf[1] - field(at[[0, 0, 0]]).sdf[1]).abs().max() > 1e-3  # each object has its points
    assert all((shared.sdf[p] - shared.sdf[0]).abs().max() > 1e-3 for p in (1, 2))  # and each prompt its object


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_distance_alone_is_that_of_both(name: str) -> None:
    field = tiny(name)(**inputs())
    for at in (points(3), points(1)):
        torch.testing.assert_close(field.sdf(at), field(at).sdf, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_all_parameters(name: str) -> None:
    made, given = tiny(name), inputs()
    more = {"layer_noise": made.layer_noise(3)} if isinstance(made, VoxelConv) and made.settings.layer_noise else {}
    values = made(**given, **more)(points(3, 400, radius=made.radius))
    weights = torch.randn(values.sdf.shape, generator=torch.Generator().manual_seed(0))
    ((values.sdf + values.colour.sum(-1)) * weights).sum().backward()
    missing = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert [n for n, p in made.named_parameters() if not p.grad.abs().max() > 0] == []
    if more:  # no noise: a gradient of zero, and not none, as data parallelism wants
        made.zero_grad()
        made(**given).sdf(points(1)).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for n, p in made.named_parameters() if "strength" in n)


@pytest.mark.parametrize(
    ("name", "most", "r0"),
    [("hyper_small", 0.01, 0.5), ("triplane_small", 0.1, 0.5), ("voxel_conv_small", 0.2, 0.5), ("hyper", 1e-4, 0.5)],
)
@torch.no_grad()
def test_objects_begin_as_spheres(name: str, most: float, r0: float) -> None:
    torch.manual_seed(0)
    made = generator_of(preset(name))
    field = made(torch.randn(4, made.prompt_dim or 4), torch.randn(4, 3, made.token_dim or 4))
    at = points(1, 2000, radius=made.radius)
    values = field(at)
    assert (values.sdf - (at.norm(dim=-1) - r0)).abs().max() < most
    assert (values.colour - 0.5).abs().max() < most


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_autocast_makes_float32_fields_near_those_of_float32(name: str) -> None:
    made, given, at = tiny(name), inputs(), points(1)
    plain = made(**given)(at)
    with torch.autocast("cpu", torch.bfloat16):
        field = made(**given)
    for found in (field(at), field.on_axes(*[torch.linspace(-1, 1, 3)] * 3)):
        assert found.sdf.dtype == found.colour.dtype == torch.float32
    away = (field(at).sdf - plain.sdf).abs().max()
    assert away < (0 if name.startswith("hyper") else 0.1) * (plain.sdf - at.norm(dim=-1)).std() + 1e-7


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_generator_is_a_function_of_its_inputs(name: str) -> None:
    made, given, at = tiny(name), inputs(), points(1)
    state = torch.get_rng_state()
    first = made(**given)(at)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.sdf, made(**given)(at).sdf) and torch.equal(first.colour, tiny(name)(**given)(at).colour)


def test_what_is_missing_is_refused() -> None:
    given = inputs()
    pooled, tokens, noise = given["pooled"], given["tokens"], given["noise"]
    triplane, voxel, hyper = tiny("triplane"), tiny("voxel_conv"), tiny("hyper")
    assert (triplane.needs_tokens, voxel.needs_tokens, hyper.needs_tokens) == (True, False, False)
    assert (triplane.noise_dim, voxel.noise_dim, hyper.noise_dim) == (0, 4, 0)
    for call, message in (
        (
            lambda: triplane(pooled),
            r"TriplaneTransformer needs the embeddings of tokens: tokens is None; .*\(3, L, 5\)",
        ),
        (lambda: triplane(pooled, tokens[:2]), r"tokens has shape \(2, 4, 5\); it must have shape \(3, 4, 5\)"),
        (lambda: triplane(pooled, tokens[..., 0]), r"tokens has shape \(3, 4\); it must have shape \(3, L, 5\)"),
        (lambda: triplane(pooled, tokens, torch.ones(3, 5)), r"mask has shape \(3, 5\); it must have shape \(3, 4\)"),
        (lambda: voxel(pooled), r"VoxelConv needs noise for each prompt: noise is None; .*\(3, 4\)"),
        (lambda: voxel(pooled[:, :5], noise=noise), r"pooled has shape \(3, 5\); it must have shape \(3, 6\)"),
        (lambda: hyper(pooled[:, :5]), r"HyperGenerator: pooled has shape \(3, 5\)"),
        (lambda: voxel(pooled, noise=noise, layer_noise=[noise]), "layer_noise is for 1 layers; 5 layers take noise"),
        (lambda: tiny("voxel_conv_plain")(pooled, layer_noise=[noise]), "0 layers take noise"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_the_scale_of_embeddings_does_not_matter(name: str) -> None:
    made, given, at = tiny(name), inputs(), points(1)
    scaled = {key: value if key == "mask" else 10 * value for key, value in given.items()}
    torch.testing.assert_close(made(**scaled).sdf(at), made(**given).sdf(at), rtol=0, atol=1e-3)


@torch.no_grad()
def test_masked_tokens_do_not_matter() -> None:
    made, given, at = tiny("triplane"), inputs(), points(1)
    found = made(**given).sdf(at)
    given["tokens"][0, 2:] = 100.0
    torch.testing.assert_close(made(**given).sdf(at), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(**{**given, "mask": given["mask"].long()}).sdf(at), found, rtol=0, atol=1e-6)
    short = made(given["pooled"][:1], given["tokens"][:1, :2]).sdf(at)
    torch.testing.assert_close(short[0], found[0], rtol=0, atol=1e-5)
    given["tokens"][0, 1] = 100.0
    assert (made(**given).sdf(at) - found).abs().amax(1)[0] > 1e-3


@pytest.mark.parametrize("length", [4, 300])
def test_attention_is_the_fused_one(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, length, length))
    mask = torch.rand(2, 1, 1, length) > 0.3
    for seen in (None, mask):
        found, wanted = attend(q, k, v, seen), F.scaled_dot_product_attention(q, k, v, seen)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        pairs = zip(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (found, wanted)), strict=True)
        assert all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in pairs)


@torch.no_grad()
def test_noise_of_layers_is_zero_unless_given() -> None:
    made, given, at = tiny("voxel_conv"), inputs(), points(1)
    plain, noise = made(**given).sdf(at), made.layer_noise(3, torch.Generator().manual_seed(0))
    assert [n.shape[-1] for n in noise] == [4, 8, 8, 16, 16] and len(noise[0]) == 3
    zeros = [torch.zeros_like(n) for n in noise]
    assert torch.equal(made(**given, layer_noise=zeros).sdf(at), plain)
    assert (made(**given, layer_noise=noise).sdf(at) - plain).abs().max() > 1e-3
    torch.manual_seed(0)
    fresh = generator_of(TINY["voxel_conv"])
    assert torch.equal(fresh(**given, layer_noise=noise).sdf(at), fresh(**given).sdf(at))  # strengths begin at zero


@pytest.mark.parametrize(("kernel", "demodulate"), [(3, True), (1, False), (3, False)])
@torch.no_grad()
def test_modulated_convolution_is_a_convolution_with_weights_of_each_object(kernel: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(5, 4, kernel, 7, demodulate).double()
    x, w = torch.randn(3, 5, 4, 4, 4, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    found = layer(x, w)
    for p in range(3):
        style = layer.affine.weight @ w[p] / 7**0.5 + layer.affine.bias
        weight = layer.weight / (5 * kernel**3) ** 0.5 * style[None, :, None, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3, 4), keepdim=True) + 1e-8).sqrt()
            assert torch.allclose(weight.flatten(1).norm(dim=1), torch.ones(4).double(), atol=1e-6)
        wanted = F.conv3d(x[p : p + 1], weight, padding=kernel // 2)[0]
        torch.testing.assert_close(found[p], wanted, rtol=0, atol=1e-12)
        grouped = F.conv3d(
            x[p][None, :, :1, :1, :1], weight[..., kernel // 2, kernel // 2, kernel // 2, None, None, None]
        )
        assert kernel == 3 or torch.allclose(found[p, :, 0, 0, 0], grouped.flatten(), atol=1e-12)


def test_doubling_and_sub_voxels_put_values_where_they_belong() -> None:
    ramp = torch.linspace(0, 1, 4)
    x = torch.stack(torch.meshgrid(ramp, 2 * ramp, 3 * ramp, indexing="ij"))[None]
    fine = torch.linspace(0, 1, 8)
    wanted = torch.stack(torch.meshgrid(fine, 2 * fine, 3 * fine, indexing="ij"))[None]
    torch.testing.assert_close(double(x), wanted, rtol=0, atol=1e-6)  # linear maps stay, outer voxels too
    x = torch.randn(2, 3 * 8, 2, 3, 4)
    found = sub_voxels(x, 2)
    assert found.shape == (2, 3, 4, 6, 8)
    for p, c, i, j, k in np.ndindex(2, 3, 4, 6, 8):
        channel = 8 * c + 4 * (i % 2) + 2 * (j % 2) + k % 2
        assert found[p, c, i, j, k] == x[p, channel, i // 2, j // 2, k // 2]


def test_settings_and_names_that_do_not_exist_are_refused() -> None:
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: preset("hyper_smal"), "generator is 'hyper_smal'; it must be one of .* did you mean hyper_small"),
        (lambda: generator_of(HeadSettings()), "are a HeadSettings; they must be"),  # type: ignore[arg-type]
        (lambda: TriplaneSettings(width=100), "width is 100, heads 16; width must be a multiple of heads"),
        (lambda: VoxelConvSettings(channels=()), "the number of channels is 0"),
        (lambda: VoxelConvSettings(noise_dim=-1), "noise_dim is -1"),
        (lambda: HyperSettings(grid=HeadSettings()), "grid is a HeadSettings"),  # type: ignore[arg-type]
        (lambda: HyperSettings(radius=0.0), "radius is 0.0; it must be a number above 0.0"),
        (lambda: TriplaneSettings(radius=0.5), "head.sphere is 0.8, radius 0.5; the sphere must be smaller than"),
    ]
    for call, message in refused:
        with pytest.raises(UserError, match=message):
            call()


def test_two_prompts_become_two_solids() -> None:
    torch.manual_seed(0)
    made = generator_of(HyperSettings.small(prompt_dim=8))
    prompts, axis = torch.randn(2, 8), grid_axis(1.0, 14)
    x = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    ring = ((x[..., :2].norm(dim=-1) - 0.5).square() + x[..., 2].square()).sqrt() - 0.2
    wanted = torch.stack([ring, x.abs().amax(-1) - 0.45]).clamp(-0.2, 0.2)
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3, betas=(0.0, 0.99))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 60)
    losses = []
    for _ in range(60):
        sdf = sdf_on_grid(made(prompts), 14)
        losses.append((sdf.clamp(-0.2, 0.2) - wanted).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        falling.step()
    assert losses[-1] < losses[0] / 10
    inside, found = wanted < 0, sdf < 0
    overlap = (found & inside).flatten(1).sum(1) / (found | inside).flatten(1).sum(1)
    assert overlap.min() > 0.9
