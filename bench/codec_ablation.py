"""What each part of the codec's denoiser is worth: the same codec, the same bits, one part off at a time.

    python bench/codec_ablation.py --codec runs/codec_small/export --train runs/photographs/train \
        --images runs/photographs/heldout --out runs/codec_ablation

First two denoisers are pre-trained, one that is told the code and one that is not. Then each arm adapts the decoder for
the same number of steps, with the encoder and the entropy model as they are, so that all arms decode the same files.
Arms that are done are kept in OUT; a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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
from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.evaluation.pairs.pixels import ms_ssim, psnr
from diffdistill.files import write_json_atomic
from diffdistill.methods import CodecFlow, ImageCodec, OptimizerSettings, ParameterGroup
from diffdistill.methods.codec_flow import sample_latent
from diffdistill.methods.codec_judge import CODE, CodecJudge, LatentBackbone
from diffdistill.methods.codec_rate_distortion import CodecLoss
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

OURS = DenoiserSettings()
# name: (where it starts, the denoiser, weight of the alignment, weight of the judge)
ARMS: dict[str, tuple[str, DenoiserSettings | None, float, float]] = {
    "no denoiser": ("codec", None, 0.0, 0.0),
    "convolutions, as many parameters": ("codec", dataclasses.replace(OURS, kind="convolutions"), 0.0, 0.0),
    "transformer from nothing": ("codec", OURS, 0.0, 0.0),
    "all three alignments": ("code", OURS, 0.05, 0.0),
    "no variance-guided step": ("code", dataclasses.replace(OURS, step="sample"), 0.05, 0.0),
    "time for each token": ("code", dataclasses.replace(OURS, step="token"), 0.05, 0.0),
    "no self-distillation": ("code", OURS, 0.0, 0.0),
    "no latent condition": ("none", dataclasses.replace(OURS, conditional=False), 0.05, 0.0),
    "pre-trained for generation": ("none", OURS, 0.05, 0.0),
    "with score distillation": ("code", OURS, 0.05, 0.1),
}


def main() -> None:
    """Train what is missing, and print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", required=True, help="folder of a codec without a denoiser")
    parser.add_argument("--train", required=True, help="photographs to train on")
    parser.add_argument("--images", required=True, help="photographs to measure on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--flow_samples", type=int, default=24000, help="crops of the pre-training")
    parser.add_argument("--samples", type=int, default=2400, help="crops of each arm")
    parser.add_argument("--qualities", type=int, nargs="+", default=(15, 45), help="at which arms are measured")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="only these")
    parser.add_argument("--vgg", action="store_true", help="also ST-LPIPS of VGG, which is slow")
    o = parser.parse_args()
    found = {"untouched": _kept(o, "untouched", lambda: measure(Codec(o.codec), o))}
    for arm in o.arms:
        found[arm] = _kept(o, arm, lambda arm=arm: measure(Codec(adapted(arm, o)), o))
        print(json.dumps({arm: found[arm]["mean"]}), file=sys.stderr, flush=True)
    many = _kept(o, "20 steps in place of one", lambda: measure(Codec(flow("code", o)), o, steps=20))
    print(json.dumps({name: row["mean"] for name, row in {**found, "20 steps": many}.items()}, indent=1))


def _kept(o: argparse.Namespace, name: str, make: Any) -> dict[str, Any]:
    file = o.out / f"{name}.json"
    made_from = {"codec": Codec(o.codec).fingerprint, "qualities": list(o.qualities), "samples": o.samples}
    if file.is_file() and (kept := json.loads(file.read_text()))["made_from"] == made_from:
        return kept  # type: ignore[no-any-return]
    o.out.mkdir(parents=True, exist_ok=True)
    made = {"made_from": made_from, **make()}
    write_json_atomic(file, made)
    return made


def _settings(samples: int, batch: int, rate: str = "cosine") -> TrainingSettings:
    return TrainingSettings(
        samples, batch_size=batch, mixed_precision="bf16", max_grad_norm=2.0, lr_schedule=rate, ema_decay=0.995,
        warmup_samples=samples // 20, log_every=20, validate_every=samples, checkpoint_every=samples,
    )  # fmt: skip


def _trained(method: Any, settings: TrainingSettings, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "export").is_dir():
        resume = "latest" if list(folder.glob("checkpoint-*")) else None
        Trainer(method, settings, folder, resume=resume).fit()
    return folder / "export"


def flow(condition: str, o: argparse.Namespace) -> Path:
    """The codec with a pre-trained denoiser."""
    if (o.out / f"flow_{condition}" / "export").is_dir():
        return o.out / f"flow_{condition}" / "export"
    method = CodecFlow(PhotographData(o.train), o.codec, OURS, condition)  # type: ignore[arg-type]
    return _trained(method, _settings(o.flow_samples, 16), o.out / f"flow_{condition}")


def adapted(arm: str, o: argparse.Namespace) -> Path:
    """The codec of an arm."""
    begins, denoiser, alignment, judge = ARMS[arm]
    start = Path(o.codec) if begins == "codec" else flow(begins, o)
    network = dataclasses.replace(Codec(o.codec).network.settings, denoiser=denoiser)
    method = ImageCodec(
        PhotographData(o.train), network, loss=CodecLoss(alignment=alignment), init_from=str(start), trained="decoder",
        judge=CodecJudge(judge),
        optimizer=OptimizerSettings(2e-4, (0.9, 0.99), groups=(ParameterGroup("decoder[.]out", 8e-5),)),
    )  # fmt: skip
    begin = time.process_time()
    made = _trained(method, _settings(o.samples, 4), o.out / arm.replace(" ", "_").replace(",", ""))
    print(f"{arm}: {time.process_time() - begin:.0f} CPU seconds", file=sys.stderr, flush=True)
    return made


@torch.inference_mode()
def measure(codec: Codec, o: argparse.Namespace, steps: int = 1) -> dict[str, Any]:
    """Metrics of each photograph at each quality, and their means."""
    source = open_source(o.images)
    distances = {"st_alex": st_lpips("alex")} | ({"st_vgg": st_lpips("vgg")} if o.vgg else {})
    rows = []
    for number in range(len(source)):
        image = source.read(number)
        for quality in o.qualities:
            data = codec.encode(image, quality)
            made = codec.decode(data) if steps == 1 else sampled(codec, image, quality, number, steps)
            x, y = image[None], made[None]
            row = {"psnr_db": float(psnr(x, y)), "ms_ssim": float(ms_ssim(x, y))}
            row |= {name: float(distance(x, y)) for name, distance in distances.items()}
            row["bpp"] = 8 * len(data) / image[0].numel()
            rows.append({"image": source.label(number), "quality": quality, **row})
    names = [name for name in rows[0] if name not in ("image", "quality")]
    mean = {
        str(quality): {
            name: round(sum(r[name] for r in rows if r["quality"] == quality) / len(source), 4) for name in names
        }
        for quality in o.qualities
    }
    return {"mean": mean, "rows": rows}


def sampled(codec: Codec, image: Tensor, quality: int, seed: int, steps: int) -> Tensor:
    """What the decoder makes of latents that are sampled in several steps, told the code."""
    network, of = codec.network, torch.tensor([float(quality)])
    x = torch.nn.functional.pad(
        image[None].float() / 255, (0, -image.shape[2] % 64, 0, -image.shape[1] % 64), "replicate"
    )
    coded = network.latent_codec.rounded(network.encode(x), of)
    assert network.denoiser is not None
    denoiser = Denoiser(LatentBackbone(network.denoiser.transformer, True), FlowSchedule(), "flow")
    shape = (network.settings.latent, *coded.y.shape[-2:])
    w = sample_latent(denoiser, SampleRandom(seed, [0]).normal("noise", shape), {CODE: coded.y}, steps)
    made = network.decode(coded.y, of, coded.indexes, network.denoiser.restored(w))
    return (made[0, :, : image.shape[1], : image.shape[2]].clamp(0, 1) * 255).round().to(torch.uint8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guard(main))
