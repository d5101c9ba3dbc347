"""What each part of the codec's denoiser is worth: the same codec, the same bits, one part off at a time.

    python bench/codec_ablation.py --codec runs/codec_small/export --train runs/photographs/train \
        --images runs/photographs/heldout --out runs/codec_ablation

First two denoisers are pre-trained, one that is conditioned on the code and one that is not. Then each arm adapts
decoder and denoiser for the same number of steps, from the same weights and the same draws. The encoder and the entropy
model stay as they are, so all arms decode the same files. Arms that are done are kept in OUT, by all they were made
from.

"oracle" decodes what the encoder made before rounding: the most that a denoiser can reach with the untouched decoder.
"20 steps" samples the code by flow matching, conditioned on the rounded one, and decodes it with the decoder of
"all three".
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.cli.main import guard
from diffdistill.codec import Codec
from diffdistill.codec.one_step import DenoiserSettings
from diffdistill.data.photographs import PhotographData
from diffdistill.data.sources import open_source
from diffdistill.diffusion import Denoiser, FlowSchedule
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.evaluation.pairs.pixels import ms_ssim, psnr
from diffdistill.files import write_json_atomic
from diffdistill.methods import CodecFlow, ImageCodec, OptimizerSettings, ParameterGroup
from diffdistill.methods.codec_flow import condition_of, sample_code
from diffdistill.methods.codec_judge import CONDITION, CodecJudge, LatentBackbone
from diffdistill.methods.codec_rate_distortion import CodecLoss
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

OURS = DenoiserSettings()
# name: (where it starts, the denoiser, weight of the alignment, weight of the judge)
ARMS: dict[str, tuple[str, DenoiserSettings | None, float, float]] = {
    "no denoiser": ("codec", None, 0.0, 0.0),
    "convolutions, as many parameters": ("codec", dataclasses.replace(OURS, kind="convolutions"), 0.0, 0.0),
    "transformer from nothing": ("codec", OURS, 0.0, 0.0),
    "all three alignments": ("code", OURS, 0.01, 0.0),
    "no variance-guided step": ("code", dataclasses.replace(OURS, step="channel"), 0.01, 0.0),
    "time for each token": ("code", dataclasses.replace(OURS, step="token"), 0.01, 0.0),
    "no self-distillation": ("code", OURS, 0.0, 0.0),
    "no latent condition": ("none", dataclasses.replace(OURS, conditional=False), 0.01, 0.0),
    "pre-trained for generation": ("none", OURS, 0.01, 0.0),
    "with score distillation": ("code", OURS, 0.01, 0.01),
}


def main() -> None:
    """Train what is missing, and print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", required=True, help="folder of a codec without a denoiser")
    parser.add_argument("--train", required=True, help="photographs to train on")
    parser.add_argument("--images", required=True, help="photographs to measure on")
    parser.add_argument("--names", nargs="+", help="only these photographs are measured")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--flow_samples", type=int, default=24000, help="crops of the pre-training")
    parser.add_argument("--samples", type=int, default=2400, help="crops of each arm")
    parser.add_argument("--qualities", type=int, nargs="+", default=(15, 45), help="at which arms are measured")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="of the draws and of new weights")
    parser.add_argument("--vgg", action="store_true", help="also ST-LPIPS of VGG, which is slow")
    o = parser.parse_args()
    codec = Codec(o.codec)
    made = {name: _kept(o, name, ("measure", name), lambda ideal=ideal: measure(codec, o, ideal=ideal))
            for name, ideal in (("untouched", False), ("oracle", True))}  # fmt: skip
    for seed in o.seeds:
        for arm in o.arms:
            name = f"{arm}, seed {seed}"
            made[name] = _kept(o, name, (ARMS[arm], seed), lambda arm=arm, seed=seed: of_arm(arm, o, seed))
            print(json.dumps({name: made[name]["mean"]}), file=sys.stderr, flush=True)
    if "all three alignments" in o.arms:
        made["20 steps"] = _kept(o, "20 steps", ("20 steps", o.seeds[0]), lambda: many_steps(o))
    print(
        json.dumps(
            {name: {k: row[k] for k in ("mean", "parameters") if k in row} for name, row in made.items()}, indent=1
        )
    )


def _digest(o: argparse.Namespace, of: Any) -> str:
    """A short hash of everything that a result is made from."""
    photographs = [open_source(path).digest() for path in (o.train, o.images)]
    everything = (Codec(o.codec).identity, photographs, o.samples, o.flow_samples, repr(of))
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:10]


def _kept(o: argparse.Namespace, name: str, of: Any, make: Any) -> dict[str, Any]:
    digest = _digest(o, (of, tuple(o.qualities), o.vgg, o.names))
    file = o.out / f"{name.replace(' ', '_').replace(',', '')}-{digest}.json"
    if file.is_file():
        return json.loads(file.read_text())  # type: ignore[no-any-return]
    o.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = make()
    write_json_atomic(file, made)
    return made


def _trained(method: Any, o: argparse.Namespace, samples: int, batch: int, seed: int, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = TrainingSettings(
        samples, batch_size=batch, mixed_precision="bf16", max_grad_norm=2.0, lr_schedule="cosine", ema_decay=0.995,
        warmup_samples=samples // 20, log_every=20, validate_every=samples, checkpoint_every=samples, seed=seed,
    )  # fmt: skip
    return Trainer(method, settings, folder).fit()


def flow(condition: str, o: argparse.Namespace) -> Path:
    """The codec with a pre-trained denoiser."""
    folder = o.out / f"flow-{condition}-{_digest(o, (condition, OURS))}"
    if (folder / "export").is_dir():
        return folder / "export"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    method = CodecFlow(PhotographData(o.train), o.codec, OURS, condition)  # type: ignore[arg-type]
    return _trained(method, o, o.flow_samples, 16, 0, folder)


def adapted(arm: str, o: argparse.Namespace, seed: int) -> Path:
    """The codec of an arm."""
    begins, denoiser, alignment, judge = ARMS[arm]
    folder = o.out / f"{arm.replace(' ', '_').replace(',', '')}-{seed}-{_digest(o, ARMS[arm])}"
    if (folder / "export").is_dir():
        return folder / "export"
    shutil.rmtree(folder, ignore_errors=True)
    start = Path(o.codec) if begins == "codec" else flow(begins, o)
    network = dataclasses.replace(Codec(o.codec).network.settings, denoiser=denoiser)
    groups = [ParameterGroup("decoder[.]out", 8e-5)]
    if denoiser is not None and denoiser.kind == "transformer":
        groups.append(ParameterGroup("denoiser[.](step|of_scales|time)", 5e-3))
    torch.manual_seed(seed)
    method = ImageCodec(
        PhotographData(o.train), network, loss=CodecLoss(2.0, 1.0, 0.2, alignment=alignment), init_from=str(start),
        trained="decoder", judge=CodecJudge(judge),
        optimizer=OptimizerSettings(2e-4, (0.9, 0.99), groups=tuple(groups)),
    )  # fmt: skip
    return _trained(method, o, o.samples, 4, seed, folder)


def of_arm(arm: str, o: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train and measure an arm."""
    begin = time.process_time()
    codec = Codec(adapted(arm, o, seed))
    took, denoiser = time.process_time() - begin, codec.network.denoiser
    count = 0 if denoiser is None else sum(p.numel() for p in denoiser.parameters())
    return {**measure(codec, o), "parameters": count, "cpu_seconds": round(took)}


def many_steps(o: argparse.Namespace) -> dict[str, Any]:
    """The code sampled in 20 steps, and the decoder of "all three"."""
    codec, pretrained = Codec(adapted("all three alignments", o, o.seeds[0])), Codec(flow("code", o))
    assert pretrained.network.denoiser is not None
    backbone = LatentBackbone(pretrained.network.denoiser.transformer, True)
    return measure(codec, o, Denoiser(backbone, FlowSchedule(), "flow"))


@torch.inference_mode()
def measure(
    codec: Codec, o: argparse.Namespace, sampler: Denoiser | None = None, ideal: bool = False
) -> dict[str, Any]:
    """Metrics of each photograph at each quality, and their means.

    Args:
        codec: the codec.
        o: the arguments.
        sampler: if given, it samples the code in 20 steps in place of the denoiser.
        ideal: decode what the encoder made, before rounding.
    """
    source = open_source(o.images)
    distances = {"st_alex": st_lpips("alex")} | ({"st_vgg": st_lpips("vgg")} if o.vgg else {})
    rows = []
    by_name = {Path(source.label(i)).stem: i for i in range(len(source))}
    if missing := [name for name in o.names or () if name not in by_name]:
        raise UserError(f"{o.images} has no photograph {missing[0]!r}; there are {', '.join(by_name)}")
    numbers = [by_name[name] for name in o.names or by_name]
    for number in numbers:
        image = source.read(number)
        for quality in o.qualities:
            data = codec.encode(image, quality)
            made = (
                codec.decode(data) if sampler is None and not ideal else _other(codec, image, quality, number, sampler)
            )
            x, y = image[None], made[None]
            row = {"psnr_db": float(psnr(x, y)), "ms_ssim": float(ms_ssim(x, y))}
            row |= {name: float(distance(x, y)) for name, distance in distances.items()}
            row["bpp"] = 8 * len(data) / image[0].numel()
            rows.append({"image": source.label(number), "quality": quality, **row})
    names = [name for name in rows[0] if name not in ("image", "quality")]
    mean = {
        str(quality): {
            name: round(sum(r[name] for r in rows if r["quality"] == quality) / len(numbers), 4) for name in names
        }
        for quality in o.qualities
    }
    return {"mean": mean, "rows": rows}


def _other(codec: Codec, image: Tensor, quality: int, seed: int, sampler: Denoiser | None) -> Tensor:
    """What the decoder makes of a code that is sampled in 20 steps, or without a sampler of the encoder's own."""
    network, of = codec.network, torch.tensor([float(quality)])
    more = (0, -image.shape[2] % 64, 0, -image.shape[1] % 64)
    y = network.encode(torch.nn.functional.pad(image[None].float() / 255, more, "replicate"))
    if sampler is not None:
        coded = network.latent_codec.rounded(y, of)
        noise = SampleRandom(seed, [0]).normal("noise", y.shape[1:])
        w = sample_code(sampler, noise, {CONDITION: condition_of(network, coded)})
        assert network.denoiser is not None
        y = network.denoiser.restored(w)
    made = network.decode_clean(y, of)
    return (made[0, :, : image.shape[1], : image.shape[2]].clamp(0, 1) * 255).round().to(torch.uint8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guard(main))
