"""A map of what networks' features tell: each tap at each noise level, of several networks on the same images.

    OUT/settings.json               what is measured, and on what
    OUT/cells/NAME-RATIO.json       the numbers of all taps of a network at a noise level
    OUT/target.safetensors          the other encoder's features, for the recoverability gap
    OUT/probe.json, OUT/index.html  all numbers, and the page

A run that was interrupted goes on with the cells that are missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill.data.labelled import Labelled
from diffdistill.errors import UserError
from diffdistill.evaluation.probes.geometry import alignment, uniformity
from diffdistill.evaluation.probes.linear import knn_accuracy, linear_accuracy, recoverability_gap
from diffdistill.evaluation.probes.page import html_page
from diffdistill.files import write_atomic, write_json_atomic

from .probed import Probed, tap_features

NEIGHBOURS = 20
NAMED = {
    "images": "--images", "labels_from": "--labels", "test_from": "--test", "train": "numbers of images to fit on",
    "test": "numbers of test images", "taps": "--taps", "noise_ratios": "--noise", "target": "--target",
}  # fmt: skip
UNIFORM = 1000  # test images of uniformity, spread evenly, since it takes all pairs


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured.

    Args:
        noise_ratios: sigma / alpha of the noisy latents.
        taps: names; None for all of each network.
        batch_size: images in a pass of a network; it changes no number beyond rounding.

    Raises:
        UserError: no noise ratio, or one that is no number above 0.
    """

    noise_ratios: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    taps: tuple[str, ...] | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.noise_ratios or not all(0 < ratio < math.inf for ratio in self.noise_ratios):
            raise UserError(f"the noise ratios are {list(self.noise_ratios)}; they must be numbers above 0")
        if len({f"{ratio:g}" for ratio in self.noise_ratios}) < len(self.noise_ratios):
            raise UserError(f"two of the noise ratios {list(self.noise_ratios)} are alike")


class ProbeMap:
    """Measures networks on labelled images, and writes a page.

    Args:
        data: the images.
        settings: what is measured.
        out: the folder; it may hold a part of the same map.
        made_from: what the images are, for the report.
        target: the other encoder, a function from images (N, 3, H, W) in uint8 to features, and its name; or None.

    Raises:
        UserError: `out` holds something else.
    """

    def __init__(
        self,
        data: Labelled,
        settings: ProbeSettings,
        out: Path,
        made_from: Mapping[str, Any],
        target: tuple[Any, str] | None = None,
    ) -> None:
        self.data, self.settings, self.out = data, settings, out
        if min(len(data.train), len(data.test)) < max(2, len(data.names)):
            raise UserError(
                f"there are {len(data.train)} images to fit on and {len(data.test)} to test, with {len(data.names)} "
                "labels; each part needs as many images as there are labels"
            )
        pixels = hashlib.sha256(data.images[torch.cat([data.train, data.test])].numpy().tobytes())
        pixels.update(data.labels[torch.cat([data.train, data.test])].numpy().tobytes())
        self.about: dict[str, Any] = {
            **made_from,
            "labels": data.names,
            "train": len(data.train),
            "test": len(data.test),
            "left_out": data.left_out,
            "why_left_out": data.why_left_out,
            "most_frequent": data.labels[data.test].bincount().max().item() / len(data.test),
            "split": data.split,
            "data": pixels.hexdigest()[:16],
            "taps": None if settings.taps is None else list(settings.taps),
            "noise_ratios": list(settings.noise_ratios),
            "neighbours": min(NEIGHBOURS, len(data.train)),
            "uniformity_of": min(UNIFORM, len(data.test)),
            "target": None if target is None else target[1],
        }
        self._check_folder()
        self._encode, self._found_targets = None if target is None else target[0], torch.empty(0)
        self._latents: dict[str, Tensor] = {}

    def run(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Measure each network, a function that opens it, by name; write probe.json and index.html; return the record.

        Raises:
            UserError: a network cannot be opened, does not fit the images, or lacks a tap.
        """
        models = self._earlier()
        for name, opened in networks.items():
            probed = opened()
            if name in models and models[name]["digest"] != probed.digest:
                raise UserError(
                    f"{self.out} has another network called {name!r}; give this one another name, as in x=PATH"
                )
            cells = self._cells(name, probed)
            models[name] = {"name": name, "digest": probed.digest, "made_from": probed.made_from, "cells": cells}
            record = {"settings": self.about, "models": list(models.values())}
            write_json_atomic(self.out / "probe.json", record)  # after each network: what is measured is not lost
            write_atomic(self.out / "index.html", html_page(record).encode())
        if not any("linear" in cell for name in networks for cell in models[name]["cells"]):
            raise UserError("no network has any of these noise levels in its schedule; take others")
        return record

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Networks that are in the map already, by name, whose cells can still be read."""
        try:
            found = json.loads((self.out / "probe.json").read_text(encoding="utf-8"))["models"]
            return {
                each["name"]: each
                for each in found
                if all(self._stored(each["name"], each["digest"], ratio) for ratio in self.settings.noise_ratios)
            }
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def _cells(self, name: str, probed: Probed) -> list[dict[str, Any]]:
        names = list(probed.taps) if self.settings.taps is None else list(dict.fromkeys(self.settings.taps))
        if unknown := [tap for tap in names if tap not in probed.taps]:
            raise UserError(f"{name} has no tap {unknown[0]!r}; its taps are {', '.join(probed.taps)}")
        size = (self.data.images.shape[-2], self.data.images.shape[-1])
        if probed.size != size:
            raise UserError(
                f"{name} draws images of {probed.size[1]} x {probed.size[0]} pixels, and these have {size[1]} x "
                f"{size[0]}; --size cuts and resizes images to a square"
            )
        found: list[dict[str, Any]] = []
        for ratio in self.settings.noise_ratios:
            cells = self._stored(name, probed.digest, ratio)
            if cells is None or [cell["tap"] for cell in cells] != names:
                write_json_atomic(self.out / "settings.json", self.about)
                cells = self._measure(name, probed, names, ratio)
                write_json_atomic(self._file(name, ratio), {"key": _key(probed.digest, ratio, cells), "cells": cells})
            found += cells
        return found

    def _file(self, name: str, ratio: float) -> Path:
        return self.out / "cells" / f"{name}-{ratio:g}.json"

    def _stored(self, name: str, digest: str, ratio: float) -> list[dict[str, Any]] | None:
        """The cells of a network at a noise level, if they are there and as they were written."""
        try:
            found = json.loads(self._file(name, ratio).read_text(encoding="utf-8"))
            cells: list[dict[str, Any]] = found["cells"]
            return cells if found["key"] == _key(digest, ratio, cells) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _measure(self, name: str, probed: Probed, names: Sequence[str], ratio: float) -> list[dict[str, Any]]:
        if (t := probed.time(ratio)) is None:
            return [{"tap": tap, "noise_ratio": ratio, "absent": "its schedule has no such noise"} for tap in names]
        data, b = self.data, self.settings.batch_size
        train, test = data.labels[data.train], data.labels[data.test]
        rows = torch.cat([data.train, data.test])
        x0 = self._encoded(probed, rows)
        n, total = len(data.train), len(rows) + len(data.test)
        with tqdm(total=total, desc=f"{name}, noise {ratio:g}", unit="img") as bar:
            first = tap_features(probed, x0, names, ratio, 0, b, bar.update)
            second = tap_features(probed, x0[n:], names, ratio, 1, b, bar.update)
        cells: list[dict[str, Any]] = []
        some = torch.arange(min(UNIFORM, len(test))) * len(test) // min(UNIFORM, len(test))
        for tap in tqdm(names, desc="probes", unit="tap", leave=False):
            a, z = first[tap][:n], first[tap][n:]
            if not bool(first[tap].isfinite().all()):
                raise UserError(f"{name}: its features at {tap} are not finite")
            classes = len(data.names)
            cell: dict[str, Any] = {
                "tap": tap,
                "noise_ratio": ratio,
                "noise_found": probed.noise(t),
                "channels": a.shape[1],
                "linear": linear_accuracy(a, train, z, test, classes),
                "knn": knn_accuracy(a, train, z, test, classes, self.about["neighbours"]),
                "alignment": alignment(z, second[tap]),
                "uniformity": uniformity(z[some]),
            }
            if self._encode is not None:
                targets = self._targets(rows)
                cell["gap"] = recoverability_gap(a, targets[:n], z, targets[n:])
            cells.append(cell)
        return cells

    def _encoded(self, probed: Probed, rows: Tensor) -> Tensor:
        """Latents of the rows, which networks that share an autoencoder share."""
        from diffdistill.models.digests import network_settings, weights_digest

        autoencoder = probed.latents.autoencoder
        key = weights_digest(autoencoder) + str(network_settings(autoencoder))
        if key not in self._latents:
            self._latents = {key: probed.latents.encode_bytes(self.data.images[rows]).cpu()}
        return self._latents[key]

    def _targets(self, rows: Tensor) -> Tensor:
        """The other encoder's features of the rows, which are stored beside the cells."""
        if len(self._found_targets):
            return self._found_targets
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save

        file = self.out / "target.safetensors"
        try:
            with safe_open(file, "pt") as opened:
                found, said = opened.get_tensor("features"), opened.metadata() or {}
            if said.get("sha256") == self._targets_key(found):
                self._found_targets = found
                return found
        except (OSError, SafetensorError):
            pass
        assert self._encode is not None
        self._found_targets = self._encode(self.data.images[rows]).contiguous()
        made = save({"features": self._found_targets}, {"sha256": self._targets_key(self._found_targets)})
        write_atomic(file, made)
        return self._found_targets

    def _targets_key(self, features: Tensor) -> str:
        """Changes with the images, the encoder and any of its features."""
        found = hashlib.sha256(f"{self.about['data']} {self.about['target']} {tuple(features.shape)}".encode())
        found.update(features.contiguous().numpy().tobytes())
        return found.hexdigest()

    def _check_folder(self) -> None:
        """Raise UserError where the folder holds something else."""
        file, wanted = self.out / "settings.json", json.loads(json.dumps(self.about))
        if file.is_file():
            try:
                there = json.loads(file.read_text(encoding="utf-8"))
                other = [key for key in wanted if there.get(key) != wanted[key]]
            except (ValueError, AttributeError):
                other = ["settings that cannot be read"]
            if other:
                key = other[0]
                now, then = wanted.get(key), there.get(key) if isinstance(there, dict) else None
                raise UserError(
                    f"{self.out} holds a map with other {NAMED.get(key, key)} ({then}, now {now}); name another folder"
                )
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out} holds something that is no map of probes; name a new folder")


def _key(digest: str, ratio: float, cells: Any) -> str:
    """Changes with the network, the noise level and any number of the cells."""
    return hashlib.sha256(json.dumps([digest, ratio, cells], sort_keys=True).encode()).hexdigest()
