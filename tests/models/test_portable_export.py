"""What is exported, and what ships, loads in the oldest diffusers and transformers that the README names.

The packages lie in a folder of their own: $DIFFDISTILL_OLDEST, or runs/transformers4 (`pip install --no-deps --target
FOLDER transformers==4.57.3 tokenizers==0.22.1 huggingface_hub==0.36.0 diffusers==0.36.0`, and `httpx` with its own).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import family_checks as checks
import pytest
import tiny_pipeline as tiny
import torch
from diffusers import DiffusionPipeline
from made import made
from safetensors.torch import load_file, save_file
from tiny_families import save_tiny_sana, save_tiny_sdxl

from diffdistill.diffusion import FlowSchedule
from diffdistill.methods import DMD2, SwiftBrush
from diffdistill.models.any_step_pipeline import AnyStepModel, export_stock_one_step
from diffdistill.models.export import export_one_step
from diffdistill.models.portable_text import make_portable
from diffdistill.models.teacher import load_teacher
from diffdistill.models.two_times import TwoTimeUNet

ROOT = Path(__file__).parents[2]
OLDEST = Path(os.environ.get("DIFFDISTILL_OLDEST", ROOT / "runs/transformers4"))
TEXTS = ["red apple", "a <toy>, blue car", "", "Caf\u00e9 7 cats' #!", "red apple " * 9]
needs_oldest = pytest.mark.skipif(not OLDEST.is_dir(), reason=f"no oldest packages at {OLDEST}")

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import diffusers, torch, transformers
from safetensors.torch import save_file
assert transformers.__version__.startswith("4."), transformers.__version__
folders, out, texts = json.loads(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
found = {}
for folder in folders:
    p = diffusers.DiffusionPipeline.from_pretrained(folder)
    info = transformers.CLIPTextModel.from_pretrained(folder + "/text_encoder", output_loading_info=True)[1]
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)
    p.set_progress_bar_config(disable=True)
    with torch.no_grad():
        found[f"{folder} embeddings"] = p.encode_prompt(texts, "cpu", 1, False)[0].contiguous()
    seeds = [torch.Generator().manual_seed(i) for i in range(len(texts))]
    asked = {"num_inference_steps": 1, "guidance_scale": 1, "generator": seeds, "output_type": "pt"}
    found[f"{folder} pictures"] = p(texts, **asked).images.contiguous()
save_file(found, out)
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with an added token of two vectors."""
    folder = tmp_path_factory.mktemp("teacher")
    p = DiffusionPipeline.from_pretrained(tiny.save_tiny_pipeline(folder / "plain"))
    p.tokenizer.add_tokens(["<toy>", "<toy>_1"])
    p.text_encoder.resize_token_embeddings(len(p.tokenizer))
    p.save_pretrained(folder / "toy")
    return folder / "toy"


def exported(teacher: Path, to: Path) -> list[Path]:
    """Exports of several methods, and of teachers whose tokenizers have either layout of files."""
    bare = tiny.save_tiny_pipeline(to / "bare")
    listed = tiny.save_tiny_pipeline(to / "listed")
    make_portable(load_teacher(str(listed)).pipeline.tokenizer, listed)
    (listed / "tokenizer/tokenizer.json").unlink()
    (to / "prompts.txt").write_text("red apple\n")
    runs = {"one": (SwiftBrush, teacher), "few": (DMD2, teacher), "b": (SwiftBrush, bare), "l": (SwiftBrush, listed)}
    for name, (method, source) in runs.items():
        made(method, teacher__source=str(source), prompts=str(to / "prompts.txt")).export(to / name)
    parts = load_teacher(str(bare)).pipeline
    model = AnyStepModel(parts, TwoTimeUNet(parts.unet), FlowSchedule())
    export_stock_one_step(model, to / "any_step")
    return [*(to / name for name in runs), to / "any_step"]


@needs_oldest
def test_embeddings_and_pictures_are_the_same_in_the_oldest_packages(teacher: Path, tmp_path: Path) -> None:
    folders = [ROOT / "assets/student", ROOT / "assets/teacher", *exported(teacher, tmp_path)]
    out = tmp_path / "found.safetensors"
    given = [json.dumps([str(folder) for folder in folders]), str(out), json.dumps(TEXTS)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(OLDEST), *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    old = load_file(out)
    for folder in folders:
        stock: Any = DiffusionPipeline.from_pretrained(folder)
        stock.set_progress_bar_config(disable=True)
        with torch.no_grad():
            new = stock.encode_prompt(TEXTS, "cpu", 1, False)[0]
        seeds = [torch.Generator().manual_seed(i) for i in range(len(TEXTS))]
        asked: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1, "generator": seeds}
        torch.testing.assert_close(old[f"{folder} embeddings"], new, rtol=1e-4, atol=1e-5)
        pictures = stock(TEXTS, **asked, output_type="pt").images
        torch.testing.assert_close(old[f"{folder} pictures"], pictures, rtol=1e-3, atol=1e-3)


FAMILY_SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import diffusers, torch
from safetensors.torch import load_file, save_file
found = {}
for folder, options in json.loads(sys.argv[2]).items():
    p = diffusers.DiffusionPipeline.from_pretrained(folder)
    p.set_progress_bar_config(disable=True)
    z = load_file(folder + "/z.safetensors")["z"]
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": z, "output_type": "pt", **options}
    found[folder] = p(json.loads(sys.argv[4]), **asked).images.contiguous()
save_file(found, sys.argv[3])
"""


@needs_oldest
def test_students_of_other_families_draw_the_same_in_the_oldest_packages(tmp_path: Path) -> None:
    given, expected = {}, {}
    for name, save_tiny in (("sdxl", save_tiny_sdxl), ("sana", save_tiny_sana)):
        loaded, folder = load_teacher(str(save_tiny(tmp_path / name))), tmp_path / f"{name}-export"
        last = loaded.schedule.last
        export_one_step(loaded, loaded.backbone.inner, last, folder)
        z = torch.randn((2, *loaded.latent_shape), generator=torch.Generator().manual_seed(0))
        save_file({"z": z}, folder / "z.safetensors")
        given[str(folder)] = checks.options(loaded)
        with torch.no_grad():
            x0 = loaded.denoiser()(z, torch.tensor(last), loaded.embed(checks.PROMPTS)).x0
        expected[str(folder)] = loaded.latents.images(x0)
    out = tmp_path / "found.safetensors"
    told = [json.dumps(given), str(out), json.dumps(checks.PROMPTS)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FAMILY_SCRIPT, str(OLDEST), *told]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, images in load_file(out).items():
        torch.testing.assert_close(images, expected[name], rtol=1e-4, atol=1e-5)


def test_files_and_names_are_those_that_both_read(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\n")
    settings = {"teacher__source": str(teacher), "prompts": str(tmp_path / "prompts.txt"), "fake__lora__rank": 2}
    made(SwiftBrush, **settings).export(tmp_path / "export")
    text = tmp_path / "export/text_encoder"
    assert all(name.startswith("text_model.") for name in load_file(text / "model.safetensors"))
    names = {path.name for path in (tmp_path / "export/tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= names
    embeddings = [load_teacher(str(folder)).embed(TEXTS) for folder in (teacher, tmp_path / "export")]
    assert torch.equal(*embeddings)


def test_shards_of_a_text_encoder_are_renamed_with_their_index(tmp_path: Path) -> None:
    folder = tiny.save_tiny_pipeline(tmp_path / "teacher")
    p = load_teacher(str(folder)).pipeline
    expected = p.text_encoder.state_dict()
    (folder / "text_encoder/model.safetensors").unlink()
    p.text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="4KB")
    make_portable(p.tokenizer, folder)
    index = json.loads((folder / "text_encoder/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1 and all(name.startswith("text_model.") for name in index)
    again = load_teacher(str(folder)).pipeline.text_encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


def test_no_shipped_file_is_a_link() -> None:
    assert not [path for path in (ROOT / "assets").rglob("*") if path.is_symlink()]
