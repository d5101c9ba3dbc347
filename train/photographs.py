"""Photographs for the codec: `python train/photographs.py --out FOLDER` makes FOLDER/train and FOLDER/heldout.

    train      37 photographs of four Debian packages of wallpapers, 210 megapixels, each halved in size by a box filter
    heldout    the photographs that come with scikit-image, scikit-learn and matplotlib; no training reads them

Notable:
- the packages are fetched by `apt-get download`, and nothing is installed. `--packages FOLDER` takes .deb files that
  are there already, and then nothing is fetched;
- most originals are JPEG files. Halving keeps a codec from learning their blocks;
- the photographs are under CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0 and GPL-2+ (the packages' copyright files name
  each). They are read for training and are not part of this project;
- of the held-out photographs, rocket, china, flower, hopper, retina and hubble are JPEG files.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from diffdistill.cli.main import guard
from diffdistill.errors import UserError
from diffdistill.files import write_atomic

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds", "plasma-workspace-wallpapers")
NOT_PHOTOGRAPHS = ("umang", "analogpattern", "Fossa", "Infinite-Sea", "Painting-Colors")
PLASMA = (
    "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
    "OneStandsOut", "Path", "summer_1am",
)  # fmt: skip
HELD_OUT = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}


def main() -> None:
    """Write the two folders, and print how many images and megapixels each has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--packages", type=Path, help="a folder with the four .deb files, so that nothing is fetched")
    o = parser.parse_args()
    report, held_out = {}, _held_out()  # what is missing is said before anything is fetched
    if missing := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
        raise UserError(f"{' and '.join(missing)} is not there; this needs Debian or Ubuntu")
    with tempfile.TemporaryDirectory() as work:
        unpacked = Path(work)
        for file in _fetched(o.packages, unpacked):
            subprocess.run(["dpkg-deb", "-x", str(file), str(unpacked / "x")], check=True)
        report["train"] = _write(_training(unpacked / "x/usr/share"), o.out / "train", halve=True)
    report["heldout"] = _write(held_out, o.out / "heldout", halve=False)
    print(json.dumps(report))


def _fetched(packages: Path | None, work: Path) -> list[Path]:
    if packages is None:
        done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"apt-get download failed: {done.stderr.strip().splitlines()[-1]}; see --packages")
        packages = work
    found = {name: next(iter(sorted(packages.glob(f"{name}_*.deb"))), None) for name in PACKAGES}
    if missing := [name for name, file in found.items() if file is None]:
        raise UserError(f"{packages} holds no .deb file of {', '.join(missing)}")
    return [file for file in found.values() if file is not None]


def _training(share: Path) -> dict[str, Path]:
    lomiri = sorted((share / "backgrounds").glob("*.jpg"))
    files = [file for file in lomiri if not file.name.startswith(NOT_PHOTOGRAPHS)]
    files += sorted((share / "backgrounds/mate/nature").glob("*.jpg"))
    found = {file.stem: file for file in files}
    return found | {name: share / "wallpapers" / name / "contents/images/2560x1600.jpg" for name in PLASMA}


def _held_out() -> dict[str, Path]:
    found = {}
    for name, (package, inside) in HELD_OUT.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{name} comes with the package {package}: pip install scikit-image scikit-learn matplotlib"
            )
        found[name] = Path(spec.submodule_search_locations[0]) / inside
    return found


def _write(files: dict[str, Path], folder: Path, halve: bool) -> dict[str, float]:
    pixels = 0
    for name, file in files.items():
        image = Image.open(file).convert("RGB")
        if halve:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        pixels += image.width * image.height
        encoded = io.BytesIO()
        image.save(encoded, "PNG", compress_level=1)
        write_atomic(folder / f"{name}.png", encoded.getvalue())
    return {"images": len(files), "megapixels": round(pixels / 1e6, 2)}


if __name__ == "__main__":
    sys.exit(guard(main))
