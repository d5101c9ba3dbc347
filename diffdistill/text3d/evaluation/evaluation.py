"""A model measured on all prompts of a split: one row a prompt, kept in a folder with the views.

    prompts, a few at once --model--> fields --24 reference views--> views/NAME.png, and numbers of views
                                         `--on a grid--> IoU, surface                       `--> kept/rows.json

Notable:
- rows and views are kept, so a run that was interrupted goes on. They count only while they were made from the same
  model, views, judge and settings;
- views are kept as 8 bits; the numbers of a row are of the views before they are rounded;
- a generator that takes noise is measured with that of seed 0, and its variety with several;
- what concerns several prompts is in `record`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.rate.kept import KeptRows, file_names
from diffdistill.text3d.evaluation.fingerprints import digest_of_judge, digest_of_truth
from diffdistill.text3d.evaluation.janus import janus
from diffdistill.text3d.evaluation.pictures import as_bytes, read_sheet, write_sheet
from diffdistill.text3d.evaluation.splits import SPLITS
from diffdistill.text3d.evaluation.surface import surface_of
from diffdistill.text3d.evaluation.text_retrieval import TextRetrieval
from diffdistill.text3d.evaluation.variety import noise_of_objects, noise_width, variety
from diffdistill.text3d.measures import Maker, Ruler
from diffdistill.text3d.mesh.packages import needed
from diffdistill.text3d.things.catalogue import Prompt, Split
from diffdistill.text3d.things.viewpoints import DISTANCE, FOV_DEG, REFERENCE_AZIMUTH_DEG, REFERENCE_ELEVATION_DEG

MEASURED_BY = 3  # goes up with each change of a measure, so that old rows are not kept
MEASURES = {
    "mesh": "whether the extracted mesh is watertight, and of how many parts it is",
    "kd": "kernel distance of the views from true renders, by MobileNetV2's features",
    "variety": "how far objects are from one another",
}


@dataclass
class Evaluation:
    """A model on the prompts of a split.

    Args:
        model: the model, with the sharpness of its surface.
        fingerprint: of its weights.
        ruler: true renders, judge and settings.
        split: the prompts.
        folder: for rows and views.
        measures: of `MEASURES`; what takes no time beside rendering is always measured.
        text: retrieval by CLIP, or None.
        step: called after each piece of work, with what it was.
        features: of views (N, 3, S, S) uint8, for render-KD; by default MobileNetV2's.

    Raises:
        UserError: a prompt that the judge does not know, no prompt, an unknown measure, or weights or packages that a
            measure needs and that are missing.
    """

    model: Maker
    fingerprint: str
    ruler: Ruler
    split: Split
    folder: Path
    measures: Sequence[str] = tuple(MEASURES)
    text: TextRetrieval | None = None
    step: Callable[[str], None] = lambda what: None
    features: Extractor | None = None

    def __post_init__(self) -> None:
        self.prompts = self.split.all
        if not self.prompts:
            raise UserError("the split has no prompt")
        for prompt in self.prompts:
            self.ruler.number(prompt)
        for measure in self.measures:
            if measure not in MEASURES:
                raise UserError(f"there is no measure {measure!r}; there are {', '.join(MEASURES)}")
        if "mesh" in self.measures:  # what is missing is said before the work
            needed("skimage.measure")
            needed("scipy.sparse")
        if "kd" in self.measures and self.features is None:
            from diffdistill.evaluation.features.mobilenet import MobileNetFeatures

            self.features = MobileNetFeatures()
        names = file_names(str(prompt).replace(" ", "_") for prompt in self.prompts)
        self._names = dict(zip(self.prompts, names.values(), strict=True))
        self._split_of = {prompt: name for name in SPLITS for prompt in getattr(self.split, name)}
        self._settings: dict[str, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        if self._settings is None:
            self._settings = self._described()
        return self._settings

    def _described(self) -> dict[str, Any]:
        judge, things = self.ruler.judge, dict.fromkeys(prompt.thing for prompt in self.prompts)
        return {
            "model": self.fingerprint,
            "sharpness": self.model.sharpness,
            "splits": {name: [str(prompt) for prompt in getattr(self.split, name)] for name in SPLITS},
            "queries": [str(prompt) for prompt in judge.prompts],
            "judge": digest_of_judge(judge),
            "views": {
                "azimuths_deg": list(REFERENCE_AZIMUTH_DEG),
                "elevations_deg": list(REFERENCE_ELEVATION_DEG),
                "distance": DISTANCE,
                "fov_deg": FOV_DEG,
                "background": "white",
                "side": self.ruler.views.size,
                "sha256": {
                    thing: digest_of_truth(self.ruler, [p for p in self.prompts if p.thing == thing])
                    for thing in things
                },
            },
            "measures": sorted(self.measures),
            "how": dataclasses.asdict(self.ruler.settings),
            "clip": None if self.text is None else self.text.protocol,
            "kd": self.features.protocol if self.features is not None and "kd" in self.measures else None,
            "measured_by": MEASURED_BY,
        }

    def steps(self) -> int:
        """How many pieces of work there are."""
        return len(self.prompts) * (2 if "kd" in self.measures else 1)

    def sheet(self, prompt: Prompt) -> Path:
        """The file of a prompt's views."""
        return self.folder / "views" / f"{self._names[prompt]}.png"

    def rows(self) -> list[dict[str, Any]]:
        """One row a prompt, made and kept where it is not there yet.

        Its keys are those of `measures.measured`, and: split; true_recall_at_1 and true_r_probability, of the true
        renders; recall and probability by CLIP, with the prefix "clip_"; janus (None for an empty object); watertight,
        components and specks; true_components, of procedural things; and variety, for a generator that takes noise.

        Raises:
            UserError: the model does not know a prompt.
        """
        kept = KeptRows(self.folder / "kept" / "rows.json", self.settings)
        missing = [p for p in self.prompts if str(p) not in kept or not self.sheet(p).is_file()]
        for _ in range(len(self.prompts) - len(missing)):
            self.step("kept")
        at_once = self.ruler.settings.at_once
        for start in range(0, len(missing), at_once):
            for prompt, row in self._made(missing[start : start + at_once]):
                kept.set(str(prompt), row)
                self.step(str(prompt))
        return [dict(kept[str(prompt)]) for prompt in self.prompts]

    @torch.no_grad()
    def _made(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, dict[str, Any]]]:
        """Rows of a few prompts; their views are written."""
        ruler, found = self.ruler, []
        objects = self.model([str(prompt) for prompt in prompts])
        shown, truth, volumes = ruler.show(objects, self.model.sharpness), ruler.truth(prompts), ruler.volume(objects)
        for i, prompt in enumerate(prompts):
            images, true = shown.images[i], truth[i]
            row = {"split": self._split_of[prompt], **ruler.numbers(prompt, images, shown.opacity[i], true)}
            of_truth = ruler.retrieval(prompt, true)
            row |= {"true_recall_at_1": of_truth.recall_at_1, "true_r_probability": of_truth.mean_probability}
            if self.text is not None:
                for prefix, some in (("clip_", images), ("clip_true_", true)):
                    by_text = self.text(some, ruler.number(prompt))
                    row[f"{prefix}recall_at_1"] = by_text.recall_at_1
                    row[f"{prefix}r_probability"] = by_text.mean_probability
            if (iou := ruler.iou(volumes[i], prompt, objects.radius)) is not None:
                row["iou"] = iou
            if (most := ruler.true_psnr(prompt, self.model.sharpness, objects.radius)) is not None:
                row["true_psnr_db"] = most
            row["janus"] = None if row["empty"] else janus(images, true)
            if "mesh" in self.measures:
                row |= surface_of(volumes[i], objects.radius)._asdict()
                if (volume := ruler.true_volume(prompt, objects.radius)) is not None:
                    row["true_components"] = surface_of(volume, objects.radius).components
            if "variety" in self.measures and (width := noise_width(self.model)):
                noise = noise_of_objects(width).to(getattr(objects, "device", None) or "cpu")
                several = self.model([str(prompt)] * len(noise), noise)
                row["variety"] = variety(ruler.show(several, self.model.sharpness).images)
            write_sheet(self.sheet(prompt), as_bytes(images))
            found.append((prompt, row))
        return found

    def views(self) -> Tensor:
        """The kept views of all prompts, (P, 24, 3, S, S) uint8."""
        return torch.stack([read_sheet(self.sheet(prompt), self.ruler.views.size) for prompt in self.prompts])
