"""A codec and its rivals on photographs: rows of a curve, files at equal bytes, and the patch distance at each point.

    photographs -> each codec at each quality -> file -> image -> row (bytes, metrics)      curves
                -> this codec at a rate; rivals at its bytes -> rows and crops              equal bytes
    files of all photographs at one quality -> patches -> kernel distance                   patch-KD

Every row is of a real file, whose bytes are counted and which is decoded again. Files and rows are kept in a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.evaluation.rate.classic import ClassicCodec
from diffdistill.evaluation.rate.crops import SIDE, links, write_crops
from diffdistill.evaluation.rate.kept import MEASURED_BY, KeptRows, file_names, made_by, pixels_digest
from diffdistill.evaluation.rate.measures import OURS, ImageCoder, Metric, RateMeasure
from diffdistill.evaluation.rate.search import best_of_branches
from diffdistill.files import write_atomic

ENDINGS = {OURS: "ddc", "jpeg": "jpg"}
PATCH = 128


@dataclass
class Comparison:
    """What is compared, and where rows are kept.

    Args:
        images: uint8 tensors of shape (3, H, W), by the photograph's name.
        codec: the codec.
        fingerprint: of all that its files depend on: its weights and its format.
        qualities: of its curve, rising.
        rivals: classic codecs by name.
        metrics: what is measured.
        folder: for rows, files and crops.
        bpp: bits a pixel at which files of equal bytes are made.
        step: called after each piece of work, with what it was.
    """

    images: Mapping[str, Tensor]
    codec: ImageCoder
    fingerprint: str
    qualities: Sequence[int]
    rivals: Mapping[str, ClassicCodec]
    metrics: Sequence[Metric]
    folder: Path
    bpp: float = 0.2
    step: Callable[[str], None] = lambda what: None
    _measure: RateMeasure | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.names = file_names(self.images)
        self._pixels = {name: pixels_digest(image) for name, image in self.images.items()}

    @property
    def coders(self) -> dict[str, ImageCoder]:
        """All codecs by name, the compared one first."""
        return {OURS: self.codec, **self.rivals}

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        return {
            "photographs": self._pixels,
            "model": self.fingerprint,
            "qualities": list(self.qualities),
            "rivals": {name: repr(rival) for name, rival in self.rivals.items()},
            "metrics": [metric.option for metric in self.metrics],
            "bpp": self.bpp,
            "measured_by": MEASURED_BY,
            **made_by(),
        }

    def steps(self) -> int:
        """How many pieces of work there are."""
        points = sum(len(self.qualities_of(name)) for name in self.coders)
        patches = points if any(metric.option == "kd" for metric in self.metrics) else 0
        return len(self.images) * (points + 1) + patches

    def qualities_of(self, codec: str) -> Sequence[int]:
        """The qualities of a codec's curve."""
        return self.qualities if codec == OURS else self.rivals[codec].qualities

    def curves(self) -> list[dict[str, Any]]:
        """A row for each codec, photograph and quality: "codec", "image", "quality", "bytes", "bpp" and the metrics."""
        return [
            {"codec": codec, "image": image, "quality": quality, **row}
            for image in self.images
            for codec in self.coders
            for quality, row in self._rows_of(codec, image).items()
        ]

    def _rows_of(self, codec: str, name: str) -> dict[int, dict[str, Any]]:
        image, coder, found = self.images[name], self.coders[codec], {}
        kept = KeptRows(self.folder / "kept" / codec / f"{self.names[name]}.json", self._made_from(codec, name))
        for quality in self.qualities_of(codec):

            def make(quality: int = quality) -> dict[str, Any]:
                data = coder.encode(image, quality)
                row = self.measure(codec, image, coder.decode(data), data)
                write_atomic(self._file(codec, name, quality), data)
                return row

            found[quality] = kept.get(str(quality), make)
            self.step(f"{name} {codec}")
        return found

    def equal_bytes(self) -> list[dict[str, Any]]:
        """For each photograph, this codec's best file of at most `bpp`, and each rival's of at most as many bytes.

        Returns:
            A dict for each photograph: "image"; "files", rows as of `curves`, with "fits" (whether the file has at most
            the bytes asked for) and "quality", by codec; and "crops", see `crops.write_crops`.
        """
        found = []
        for name, image in self.images.items():
            made_from = {c: self._made_from(c, name) for c in self.coders} | {"bpp": self.bpp, "side": SIDE}
            kept = KeptRows(self.folder / "kept" / "equal" / f"{self.names[name]}.json", made_from)
            there = "row" in kept and all((self.folder / link).is_file() for link in links(kept["row"]["crops"]))
            row = kept["row"] if there else kept.set("row", self._equal(name, image))
            found.append({"image": name, **row})
            self.step(f"{name} at equal bytes")
        return found

    def _equal(self, name: str, image: Tensor) -> dict[str, Any]:
        most, files, made = int(self.bpp * image[0].numel() / 8), {}, {}
        for codec, coder in self.coders.items():
            low = 0 if codec == OURS else self.rivals[codec].qualities[0]
            jumps = () if codec == OURS else self.rivals[codec].jumps
            best = best_of_branches(lambda quality, coder=coder: coder.encode(image, quality), most, low, jumps)  # type: ignore[misc]
            made[codec] = coder.decode(best.data)
            row = self.measure(codec, image, made[codec], best.data)
            files[codec] = {"quality": best.quality, "fits": best.fits, **row}
            if codec == OURS:
                most = len(best.data)  # of the rivals
            write_atomic(self.folder / "files" / "equal" / f"{self.names[name]}-{codec}.{_ending(codec)}", best.data)
        crops = write_crops(image, made, self.folder / "pictures" / self.names[name])
        return {"width": image.shape[2], "height": image.shape[1], "files": files, "crops": crops}

    def patch_kd(self) -> list[dict[str, Any]]:
        """The kernel distance between patches of all photographs and of their reconstructions, for each point.

        Returns:
            Rows with "codec", "quality", "bpp" (all bits over all pixels, as patches count) and "kd", the biased
            distance: 0 where all reconstructions are the originals. All codecs have as many patches, so it is fair.
        """
        from diffdistill.evaluation.distances.kernel import biased_kernel_distance
        from diffdistill.evaluation.features.mobilenet import MobileNetFeatures
        from diffdistill.evaluation.pairs.patches import PatchFeatures

        features, coders, found = PatchFeatures(MobileNetFeatures(), PATCH), self.coders, []
        originals: list[Tensor] = []
        pixels = sum(image[0].numel() for image in self.images.values())

        def make(codec: str, quality: int) -> dict[str, Any]:
            if not originals:
                originals.append(features(list(self.images.values())))
            files = [self._read(codec, name, quality) for name in self.images]
            made = features([coders[codec].decode(file) for file in files])
            return {"bpp": 8 * sum(map(len, files)) / pixels, "kd": biased_kernel_distance(made, originals[0])}

        for codec in coders:
            made_from = {"rows": [self._made_from(codec, name) for name in self.images], "kd": features.protocol}
            kept = KeptRows(self.folder / "kept" / "patch_kd" / f"{codec}.json", made_from)
            for quality in self.qualities_of(codec):
                row = kept.get(str(quality), lambda codec=codec, quality=quality: make(codec, quality))  # type: ignore[misc]
                found.append({"codec": codec, "quality": quality, **row})
                self.step(f"patch-KD of {codec}")
        return found

    def _read(self, codec: str, name: str, quality: int) -> bytes:
        """A file of a curve, which is made again if it was taken away."""
        file = self._file(codec, name, quality)
        return file.read_bytes() if file.is_file() else self.coders[codec].encode(self.images[name], quality)

    def measure(self, codec: str, image: Tensor, made: Tensor, data: bytes) -> dict[str, Any]:
        """A row; the networks of the metrics are loaded when the first one is made."""
        if self._measure is None:
            self._measure = RateMeasure(self.metrics)
        return self._measure(codec, image, made, data)

    def _made_from(self, codec: str, name: str) -> dict[str, Any]:
        own = {"model": self.fingerprint} if codec == OURS else {"codec": repr(self.rivals[codec]), **made_by()}
        options = [metric.option for metric in self.metrics if metric.option != "kd"]
        return {"pixels": self._pixels[name], **own, "metrics": options, "measured_by": MEASURED_BY}

    def _file(self, codec: str, name: str, quality: int) -> Path:
        return self.folder / "files" / codec / f"{self.names[name]}-q{quality}.{_ending(codec)}"


def _ending(codec: str) -> str:
    return ENDINGS.get(codec, codec)
