"""Seconds from a prompt to a file, and how close a textured file comes to the views of its field.

    python bench/text_to_3d_objects.py --views runs/things

One prompt of each thing is made, by default from the model that ships. The table has the PSNR of the 24 reference views
to the true renders: of the views that are rendered from the field, and of pictures of the GLB, which is read from its
file and drawn without light at four times the size. Below it stand how many of these meshes are closed; the seconds of
an object in a process that has the model already, without the first one; and those of one process of
`diffdistill text3d generate` from its start to its end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d

from diffdistill.cli.main import guard
from diffdistill.text3d.measures import psnr_db, reference_renders
from diffdistill.text3d.mesh.export import save_mesh
from diffdistill.text3d.mesh.rasterise import rasterised
from diffdistill.text3d.mesh.read import load_mesh
from diffdistill.text3d.mesh.texture import TextureSettings
from diffdistill.text3d.objects import SHIPPED, ObjectSettings, generate_field, generate_object, load_text_to_3d
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.viewpoints import FOV_DEG, reference_views, view_cameras
from diffdistill.text3d.things.views import load_views

LARGER = 4  # times: a pixel is the mean of so many squared
PROCESSES = 3


def main() -> None:
    """Make the objects, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHIPPED), help="folder of a trained model")
    parser.add_argument("--views", required=True, help="true renders of its things")
    o = parser.parse_args()
    model, views = load_text_to_3d(o.model), load_views(o.views, size=32)
    prompts = [Prompt(name, list(COLOURS)[k % len(COLOURS)]) for k, name in enumerate(views.names)]
    poses = view_cameras(*reference_views()).to_world().numpy()
    textured, seconds, losses, closed = ObjectSettings(texture=TextureSettings()), [], [], 0
    print("| prompt | field, dB | textured GLB, dB | difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "object.glb"
        for prompt in prompts:
            truth = views.references(views.indexes([prompt])).images[0]
            field = reference_renders(generate_field(model, [str(prompt)]), views.size, model.sharpness).images[0]
            made = generate_object(model, str(prompt), settings=textured)
            save_mesh(made.mesh, file, overwrite=True)
            mesh, closed = load_mesh(file), closed + made.watertight
            side = views.size * LARGER
            large = [torch.from_numpy(rasterised(mesh, pose, FOV_DEG, side).colour) for pose in poses]
            drawn = avg_pool2d(torch.stack(large).permute(0, 3, 1, 2).float(), LARGER)
            ours, theirs = psnr_db(field, truth), psnr_db(drawn, truth)
            losses.append(theirs - ours)
            print(f"| {prompt} | {ours:.1f} | {theirs:.1f} | {theirs - ours:+.1f} |", flush=True)
        print(f"\nworst difference: {min(losses):+.2f} dB; mean: {statistics.mean(losses):+.2f} dB")
        print(f"watertight: {closed} of {len(prompts)}")
        for prompt in prompts:
            start = time.perf_counter()
            save_mesh(generate_object(model, str(prompt)).mesh, file, overwrite=True)
            seconds.append(time.perf_counter() - start)
        print(f"prompt to GLB, warm: {min(seconds[1:]):.2f} to {max(seconds[1:]):.2f} s")
        command = [sys.executable, "-m", "diffdistill", "text3d", "generate", "--model", o.model, "--overwrite"]
        command += ["--prompt", str(prompts[0]), "-o", str(file)]
        whole = [_seconds(command) for _ in range(PROCESSES)]
        print(f"prompt to GLB, with the start of a process: {', '.join(f'{s:.1f}' for s in whole)} s")


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(guard(main))
