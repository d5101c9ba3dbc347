"""A prompt to an object: the field that a saved model makes of it, and the mesh of that field.

    folder --load_text_to_3d--> model;   model, prompt --generate_field--> field --marching cubes--> mesh
                                                                             `--colours--> texture --'

Notable:
- `generate_object` makes one object at a time. So an object does not depend on which others are made;
- noise is drawn on the CPU from a seed. So it is the same on every device;
- xatlas takes 25 s for 77,000 faces. So an object with a texture has 10,000 at most, unless another number is given.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffdistill.errors import UserError, shown

from .field import Field
from .mesh.extract import ExtractSettings, extract_mesh
from .mesh.queries import field_colour
from .mesh.texture import TextureSettings, textured
from .mesh.triangles import Mesh, TexturedMesh
from .model import CONFIG, WEIGHTS, TextTo3DModel, drawn_noise, load_model

SHIPPED = Path(__file__).parents[2] / "assets" / "text3d"
RESOLUTION = 96  # of marching cubes: the small generators have 27 to 32 nodes along a side
FACES_WITH_TEXTURE = 10_000
PRIOR = "prior.safetensors"  # what the folder of a prior holds
_FIRST = "object 0: "  # how `extract_mesh` names the only object of a field


@dataclass(frozen=True)
class ObjectSettings:
    """How an object is made of a field.

    Args:
        mesh: marching cubes, and what is left of their result.
        texture: None for colours of vertices. With a texture, `mesh.faces` is 10,000 where it is None.
    """

    mesh: ExtractSettings = ExtractSettings(resolution=RESOLUTION)
    texture: TextureSettings | None = None


@dataclass(frozen=True, eq=False)
class GeneratedObject:
    """An object that a model made of a prompt.

    Attributes:
        prompt: what was asked for.
        field: of one object.
        mesh: its surface, with colours of vertices or with a texture.
        watertight: whether the surface is closed; see `is_watertight`. A texture's seams do not count.
    """

    prompt: str
    field: Field
    mesh: Mesh | TexturedMesh
    watertight: bool


def load_text_to_3d(folder: str | Path = SHIPPED, device: str | torch.device = "cpu") -> TextTo3DModel:
    """A model that makes objects of prompts.

    Args:
        folder: what `save_model` wrote, such as the export of a run; by default the model that ships.
        device: where the model runs.

    Raises:
        UserError: there is no model in the folder, it is damaged, or the device is not there.
    """
    place = Path(folder)
    if not (place / WEIGHTS).is_file():
        if (place / PRIOR).is_file():
            raise UserError(f"{folder} holds a multi-view prior, which makes no objects; name a generator's folder")
        near = sorted([*place.glob(f"*/{WEIGHTS}"), *place.glob(f"*/*/{WEIGHTS}")])
        inside = next((file.parent for file in near if _is_model(file.parent)), None)
        if inside is not None:
            raise UserError(f"there is no text-to-3D model at {folder}; there is one in {inside}")
    model = load_model(place)
    if str(device) == "meta":
        raise UserError("the device 'meta' cannot be used: it holds no values; name one such as cpu or cuda")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch has many ways to say that it has no such device
        raise UserError(f"the device {shown(str(device))} cannot be used: {str(error).splitlines()[0]}") from error


def takes_noise(model: TextTo3DModel) -> bool:
    """Whether the model makes several objects of one prompt, by noise."""
    return bool(model.generator.noise_dim)


@torch.no_grad()
def generate_field(model: TextTo3DModel, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> Field:
    """The objects of P prompts as one field.

    Args:
        model: from `load_text_to_3d`.
        prompts: one for each object.
        seeds: of the noise of each object; None for seed 0. A model that takes no noise ignores them.

    Raises:
        UserError: the model does not know a word of a prompt, a prompt has none or too many words, there are no
            prompts, or there are more or fewer seeds than prompts.
    """
    if not prompts:
        raise UserError("there are no prompts; give one for each object")
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise UserError(f"a prompt is {wrong[0]!r}; it must be a text")
    if odd := [seed for seed in seeds or () if type(seed) is not int]:
        raise UserError(f"a seed is {odd[0]!r}; it must be a whole number")
    if seeds is not None and len(seeds) != len(prompts):
        raise UserError(f"there are {len(seeds)} seeds and {len(prompts)} prompts; give one for each object")
    if seeds is None or not takes_noise(model):
        return model(prompts)
    drawn = [drawn_noise(model.generator.noise_dim, seed) for seed in seeds]
    return model(prompts, torch.stack(drawn).to(model.embedder.device))


def generate_object(
    model: TextTo3DModel, prompt: str, seed: int | None = None, settings: ObjectSettings | None = None
) -> GeneratedObject:
    """One object of a prompt, as a mesh.

    Args:
        model: from `load_text_to_3d`.
        prompt: such as "a red mug".
        seed: of the noise, where the model takes some; None for 0.
        settings: `ObjectSettings()` where None.

    Raises:
        EmptyMeshError: the object has no surface; the message begins with the prompt.
        UserError: the model does not know a word of the prompt, the field is NaN or infinite, or a package is missing.
    """
    settings = settings or ObjectSettings()
    how = settings.mesh
    if settings.texture is not None and how.faces is None:
        how = dataclasses.replace(how, faces=FACES_WITH_TEXTURE)
    field = generate_field(model, [prompt], None if seed is None else [seed])
    device = str(model.embedder.device)
    mesh: Mesh | TexturedMesh
    try:
        mesh = extract_mesh(field, 0, how, device)
        closed = is_watertight(mesh.faces)
        if settings.texture is not None:
            mesh = textured(mesh, field_colour(field), settings.texture, device)
    except UserError as error:
        raise type(error)(f"{prompt!r}: {str(error).removeprefix(_FIRST)}") from error
    return GeneratedObject(prompt, field, mesh, closed)


def is_watertight(faces: np.ndarray) -> bool:
    """Whether a surface is closed: each edge belongs to two faces, which go along it in opposite directions.

    Args:
        faces: (M, 3) indexes of vertices. Vertices at one place are not taken for one, so a mesh with seams is open.

    >>> is_watertight(np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])), is_watertight(np.array([[0, 1, 2]]))
    (True, False)
    """
    start, end = (faces[:, columns].ravel().astype(np.int64) for columns in ([0, 1, 2], [1, 2, 0]))
    count = int(faces.max(initial=-1)) + 1
    there, back = np.sort(start * count + end), np.sort(end * count + start)
    once = bool((there[1:] != there[:-1]).all())
    return len(faces) > 0 and once and bool((there == back).all())


def _is_model(folder: Path) -> bool:
    """Whether a config.json beside the weights says that this is a text-to-3D model, and not a text encoder, say."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "generator", "sharpness"} <= config.keys()
