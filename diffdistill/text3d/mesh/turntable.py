"""Pictures around an object in one file: a strip (PNG), or moving (GIF, MP4).

MP4 needs the program ffmpeg, or the package imageio-ffmpeg, which brings one along.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.linear import to_levels
from diffdistill.text3d.mesh.written import check_free, write_files

Picture = np.ndarray | Tensor  # (H, W, 3): uint8, or floats in [0, 1]


def save_strip(
    pictures: Sequence[Picture], path: str | os.PathLike[str], columns: int | None = None, overwrite: bool = False
) -> None:
    """Write pictures beside each other as a PNG.

    Args:
        pictures: K of one size, (H, W, 3): uint8, or floats in [0, 1].
        path: ends in .png.
        columns: how many pictures are in a row; None for all. Places that are left in the last row are white.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: the pictures or the ending are wrong, or the file is there already.
    """
    from PIL import Image

    frames = _frames(pictures)
    if columns is not None and columns < 1:
        raise UserError(f"columns is {columns}; it must be at least 1")
    across = min(columns or len(frames), len(frames))
    k, height, width, _ = frames.shape
    rows = -(-k // across)
    places = np.full((rows * across, height, width, 3), 255, np.uint8)
    places[:k] = frames
    whole = places.reshape(rows, across, height, width, 3).swapaxes(1, 2).reshape(rows * height, across * width, 3)
    data = io.BytesIO()
    Image.fromarray(whole).save(data, "PNG", optimize=True)
    write_files({_named(path, ".png"): data.getvalue()}, overwrite)


def save_gif(
    pictures: Sequence[Picture], path: str | os.PathLike[str], fps: float = 20, overwrite: bool = False
) -> None:
    """Write pictures as a GIF that repeats for ever. All share the 256 colours that suit them best.

    Args:
        pictures: of one size, (H, W, 3): uint8, or floats in [0, 1].
        path: ends in .gif.
        fps: pictures a second, in (0, 50]. GIF counts hundredths of a second, so it is rounded.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: the pictures, `fps` or the ending are wrong, or the file is there already.
    """
    from PIL import Image

    frames = _frames(pictures)
    if not 0 < fps <= 50:
        raise UserError(f"fps is {fps:g}; a GIF has more than 0 and at most 50 pictures a second")
    chosen = frames[:: max(1, len(frames) // 8)]  # eight views hold nearly all of the colours
    palette = Image.fromarray(chosen.reshape(-1, frames.shape[2], 3)).quantize(256)
    shown: list[Any] = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    data = io.BytesIO()
    shown[0].save(
        data, "GIF", save_all=True, append_images=shown[1:], duration=10 * round(100 / fps), loop=0, optimize=False
    )
    write_files({_named(path, ".gif"): data.getvalue()}, overwrite)


def save_mp4(
    pictures: Sequence[Picture], path: str | os.PathLike[str], fps: float = 30, overwrite: bool = False
) -> None:
    """Write pictures as an H.264 film that browsers play. A side of an odd number of pixels loses one.

    Args:
        pictures: of one size, (H, W, 3): uint8, or floats in [0, 1].
        path: ends in .mp4.
        fps: pictures a second, above 0.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: neither ffmpeg nor imageio-ffmpeg is installed, ffmpeg fails, the pictures, `fps` or the ending are
            wrong, or the file is there already.
    """
    target, frames = _named(path, ".mp4"), _frames(pictures)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # 4:2:0 has colours of 2x2 pixels
    if not fps > 0 or not frames.size:
        raise UserError(f"a film of pictures of {frames.shape[1]}x{frames.shape[2]} at fps {fps:g} is not possible")
    check_free(target, overwrite)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "film.mp4"  # a file, since the beginning of an MP4 is written last
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        command = [
            _ffmpeg(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}",
            "-i", "-", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(made),
        ]  # fmt: skip
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
        if done.returncode or not made.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError(f"ffmpeg did not make {target}: {said[-1] if said else f'exit code {done.returncode}'}")
        write_files({target: made.read_bytes()}, overwrite)


def _ffmpeg() -> str:
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "an MP4 needs the program ffmpeg, which is not found, or the package imageio-ffmpeg "
            f"({error}); pip install imageio-ffmpeg, or write a .gif"
        ) from error


def _named(path: str | os.PathLike[str], ending: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != ending:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; it must end in {ending}")
    return path


def _frames(pictures: Sequence[Picture]) -> np.ndarray:
    """(K, H, W, 3) uint8."""
    arrays = [picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture for picture in pictures]
    if not arrays or any(a.ndim != 3 or a.shape[2] != 3 or not a.size or a.shape != arrays[0].shape for a in arrays):
        raise UserError(
            f"pictures are {[a.shape for a in arrays][:4]}; they must be (H, W, 3), of one size, at least 1"
        )
    if any(a.dtype != np.uint8 and a.dtype.kind != "f" for a in arrays):
        raise UserError(f"a picture is {arrays[0].dtype}; pictures must be uint8, or floats in [0, 1]")
    if any(a.dtype.kind == "f" and not (a.min() >= -1e-3 and a.max() <= 1 + 1e-3) for a in arrays):
        raise UserError("a picture has numbers outside of [0, 1], or NaN; floats must be in [0, 1]")
    return np.stack([a if a.dtype == np.uint8 else to_levels(a) for a in arrays])
