"""The transform is orthonormal and has an inverse; training sees what a file holds; a new denoiser changes nothing."""

from unittest import mock

import pytest
import torch
from small_codec import SETTINGS, network, picture

from diffdistill.codec.denoiser import DenoisingTransformer
from diffdistill.codec.lapped import LappedTransform, channels_by_variance, lapped_basis
from diffdistill.codec.latent_codec import HyperPrior, gaussian_probabilities, quadrants
from diffdistill.codec.layers import clamp_through
from diffdistill.codec.network import level_steps
from diffdistill.codec.one_step import DenoiserSettings, OneStep, of_indexes
from diffdistill.codec.scales import ScaleNetwork, scale_of


def test_the_basis_is_orthonormal_across_blocks() -> None:
    basis, signs = lapped_basis()
    eye = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis[:, :16] @ basis[:, 16:].T, 0 * eye, rtol=0, atol=1e-12)
    assert torch.equal(basis.flip(1) * signs[:, None].double(), basis) or torch.allclose(
        basis.flip(1) * signs[:, None].double(), basis, atol=1e-12
    )


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (32, 160)])
def test_all_channels_give_the_image_back(size: tuple[int, int]) -> None:
    images, transform = picture(*size)[None].float() / 255 - 0.5, LappedTransform(range(768))
    coefficients = transform(images)
    assert coefficients.shape == (1, 768, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(transform.inverse(coefficients), images, rtol=0, atol=1e-5)
    if min(size) > 16:  # energy is kept
        torch.testing.assert_close(coefficients.square().sum(), images.square().sum(), rtol=2e-2, atol=0)


def test_channels_come_by_their_variance() -> None:
    images = torch.stack([picture(64, 64, seed) for seed in range(6)]).float() / 255 - 0.5
    order, scales = channels_by_variance(images, 10)
    assert order[0] % 256 == 0 and (scales.diff() <= 0).all()
    torch.testing.assert_close(LappedTransform(order)(images).square().mean((0, 2, 3)).sqrt(), scales)


def test_probabilities_add_up_to_one() -> None:
    values = torch.arange(-600, 601, dtype=torch.float64)
    for index in (0, 20, 50):
        scale = scale_of(torch.tensor(float(index), dtype=torch.float64))
        assert abs(float(gaussian_probabilities(values, scale).sum()) - 1) < 1e-9
    prior, level = HyperPrior(3, 2).double(), torch.tensor([1])
    total = prior.probabilities(values.expand(1, 2, 1, -1), level).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    far = HyperPrior(2, 1).probabilities(torch.full((1, 1, 1, 1), 40.0), level)
    assert far > 0  # where a difference of sigmoids would be zero


def test_the_steps_settle_each_value_once() -> None:
    masks = torch.stack(quadrants(8, 6, 4, torch.device("cpu")))
    assert torch.equal(masks.sum(0), torch.ones(1, 8, 6, 4))
    assert torch.equal(masks.sum((1, 3, 4)), torch.full((4, 8), 6.0))


def test_scale_indexes_start_at_the_channels_scales_and_pass_gradients() -> None:
    scales, steps = torch.tensor([5.0, 1.0, 0.3, 0.2]), level_steps(6)
    made = ScaleNetwork(3, 4, 6, scales, -steps.log())
    z = torch.zeros(2, 3, 1, 1, requires_grad=True)
    found = made(z, torch.tensor([0.0, 100.0]))
    wanted = torch.stack([scales / steps[0], scales / steps[-1]])
    ratio = scale_of(found[:, :, 0, 0]) / wanted.clamp_min(0.11)
    assert ratio.log().abs().max() < 0.11
    made.second.data.normal_()
    made(z, torch.tensor([0.0, 100.0])).sum().backward()
    assert made.first.grad is not None and z.grad is not None and z.grad.abs().sum() > 0


def test_training_sees_the_code_that_a_file_holds() -> None:
    codec, images = network(), torch.stack([picture(64, 128), picture(64, 128, 1)]).float() / 255
    quality = torch.tensor([10.0, 90.0])
    with torch.no_grad():
        y = codec.encode(images)
        zero = torch.zeros_like(y), torch.zeros(2, SETTINGS.hyper, 1, 2)
        trained, kept = codec.latent_codec(y, quality, *zero), codec.latent_codec.rounded(y, quality)
    assert torch.equal(trained.y, kept.y) and torch.equal(trained.indexes, kept.indexes)
    assert (kept.y_bits > 0).all() and kept.y_bits[1] > kept.y_bits[0]


def test_a_new_denoiser_predicts_the_best_linear_flow_at_any_size() -> None:
    """Of values w that are independent, with variance 1: E[eps - w | w_t] = (2t - 1) / ((1 - t)^2 + t^2) w_t."""
    denoiser, x = DenoisingTransformer(8, 16, width=32, depth=2), torch.randn(2, 8, 6, 8)
    for time in (torch.rand(2), torch.rand(2, 6, 8)):
        t = (time[:, None, None] if time.dim() == 1 else time)[:, None]
        for told in (torch.randn(2, 16, 6, 8), None):
            torch.testing.assert_close(denoiser(x, time, told), (2 * t - 1) / ((1 - t) ** 2 + t**2) * x)
    w, eps = torch.randn(2, 200_000, dtype=torch.float64)
    w_t = 0.7 * w + 0.3 * eps
    slope = float((w_t * (eps - w)).mean() / w_t.square().mean())
    assert slope == pytest.approx((2 * 0.3 - 1) / (0.7**2 + 0.3**2), abs=0.01)


@pytest.mark.parametrize("kind", ["transformer", "convolutions"])
@pytest.mark.parametrize("step", ["element", "channel", "token", "sample"])
def test_a_step_of_zero_changes_nothing(kind: str, step: str) -> None:
    made = OneStep(DenoiserSettings(kind, 32, 2, 4, step), 16, 6)  # type: ignore[arg-type]
    y, indexes = torch.randn(2, 16, 4, 6) * 3 + 1, torch.full((2, 16, 4, 6), 30.0)
    made.calibrate(y)
    torch.testing.assert_close(made.normalised(y).std((0, 2, 3)), torch.ones(16))
    quality = torch.tensor([0.0, 70.0])
    if kind == "convolutions":
        torch.testing.assert_close(made(y, indexes, quality), y)
    else:
        torch.nn.init.normal_(made.transformer.out.weight)
        assert (made(y, indexes, quality) - y).abs().max() > 0.1
        if step in ("element", "channel"):
            made.without_a_step()
            torch.testing.assert_close(made(y, indexes, quality), y)
        else:
            with pytest.raises(ValueError, match="has no step of zero"):
                made.without_a_step()


def test_a_step_of_one_time_inverts_the_straight_path() -> None:
    """With the true flow eps - w at (1 - t) w + t eps, w + t / (1 - t) eps becomes w, for both kinds of time."""
    for step in ("sample", "token"):
        made = OneStep(DenoiserSettings("transformer", 32, 1, 4, step), 16, 6)  # type: ignore[arg-type]
        made.time.data.zero_()  # t = 1/2
        w, eps = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
        with mock.patch.object(made.transformer, "forward", return_value=eps - w) as flow:
            found = made(w + eps, torch.zeros(1, 16, 4, 4), torch.tensor([50.0]))
        torch.testing.assert_close(found, w)
        torch.testing.assert_close(flow.call_args.args[0], (w + eps) / 2)


def test_the_step_follows_the_scales() -> None:
    made = OneStep(DenoiserSettings("transformer", 32, 1, 4, "element"), 16, 6)
    made.step.data.fill_(0.25)
    torch.nn.init.dirac_(made.of_scales.weight)
    w, indexes = torch.randn(1, 16, 4, 4), torch.randint(0, 64, (1, 16, 4, 4)).float()
    with mock.patch.object(made.transformer, "forward", return_value=torch.ones(1, 16, 4, 4)):
        found = made(w, indexes, torch.tensor([50.0]))
    torch.testing.assert_close(w - found, (0.25 + of_indexes(indexes)) * (w + 1))
    assert OneStep(DenoiserSettings(step="channel"), 16, 6).settings.step == "channel"


def test_a_perfect_denoiser_gives_what_the_encoder_made() -> None:
    """The denoiser works where rounding spoils: with the encoder's code the decoder makes another image."""
    codec, images = network(), picture(64, 128)[None].float() / 255
    quality = torch.tensor([10.0])
    with torch.no_grad():
        y = codec.encode(images)
        coded = codec.latent_codec.rounded(y, quality)
        rounded, clean = codec.decode_clean(coded.y, quality), codec.decode_clean(y, quality)
    assert (rounded - clean).abs().mean() > 0.01
    codec.denoiser = OneStep(DenoiserSettings(width=16, heads=2), 16, 6)
    with mock.patch.object(codec.denoiser, "forward", return_value=y), torch.no_grad():
        torch.testing.assert_close(codec.decode(coded.y, quality, coded.indexes), clean)


def test_convolutions_have_about_as_many_parameters() -> None:
    sizes = [
        sum(p.numel() for p in OneStep(DenoiserSettings(kind), 192, 6).parameters())
        for kind in ("transformer", "convolutions")
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.06)


def test_z_is_wide_enough_to_survive_rounding() -> None:
    codec, images = network(), torch.stack([picture(128, 128, seed) for seed in range(4)]).float() / 255
    with torch.no_grad():
        y, quality = codec.lapped(images - 0.5), torch.full((4,), 50.0)
        codec.latent_codec.calibrate(y)
        z = codec.latent_codec.hyper_latent(codec.latent_codec.scaled(y, quality), quality)
    assert float(z.square().mean().sqrt()) == pytest.approx(2.0, rel=0.1)


def test_beyond_a_bound_only_gradients_that_lead_back_are_passed() -> None:
    for slope, expected in ((1.0, [0.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, 0.0])):
        x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
        (slope * clamp_through(x, 0, 1)).sum().backward()
        assert x.grad is not None and x.grad.tolist() == expected


def test_rounded_values_train_the_scales_and_noise_the_code() -> None:
    codec, quality = network(), torch.tensor([50.0])
    y = codec.encode(picture(64, 64)[None].float() / 255).detach().requires_grad_()
    zeros = torch.zeros(1, 16, 4, 4), torch.zeros(1, 8, 1, 1)
    trained = codec.latent_codec(y, quality, *zeros)
    kept = codec.latent_codec.rounded(y, quality)
    torch.testing.assert_close(trained.y_bits, kept.y_bits)
    torch.testing.assert_close(trained.z_bits, kept.z_bits)
    trained.y_bits.sum().backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    assert codec.latent_codec.scales.offset.grad.abs().sum() > 0
