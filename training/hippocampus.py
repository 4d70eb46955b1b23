"""Train the network that finds hippocampi, and write its weights into the package with a report beside this file.

    python training/hippocampus.py CROPS_FOLDER

CROPS_FOLDER holds ``images/`` and ``labels/`` of Task04 of the Medical Segmentation Decathlon (CC BY-SA 4.0; Antonelli
et al. 2022, 10.1038/s41467-022-30695-9; Simpson et al. 2019, arXiv:1902.09063). They do not say their side, but all
show the same: each resembles their mean, a left hippocampus, more than its mirror image. Every sixth crop is held
out: the network never sees it, and the report says what it makes of it. The same seed makes the same crops; the
weights agree to the rounding of the machine's kernels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from brainstage.models.hippocampus_network import CHANNELS, Segmenter, build_network, segmenter_of
from brainstage.pipeline.files import sha256_of_file, write_text
from brainstage.preprocessing.hippocampi import BOX_SHAPE, normalised, opinions

if __package__:
    from training.hippocampus_augmentation import Crop, augmented, crop_of
else:
    from hippocampus_augmentation import Crop, augmented, crop_of

if TYPE_CHECKING:
    from torch import nn

HELD_OUT_EVERY: Final = 6
WEIGHTS: Final = Path(__file__).parents[1] / "models" / "hippocampus.safetensors"
REPORT: Final = Path(__file__).with_suffix(".md")
LICENCE: Final = (
    "CC BY-SA 4.0; trained on Task04 of the Medical Segmentation Decathlon, "
    "Vanderbilt University Medical Center"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is trained.

    Attributes
    ----------
    steps, batch : int
    learning_rate : float
        The highest; one cycle of cosine.
    volume_weight : float
        Of the relative error of the volume in the loss, beside Dice and cross-entropy.
    seed : int
    """

    steps: int = 5000
    batch: int = 2
    learning_rate: float = 3e-3
    volume_weight: float = 0.3
    seed: int = 0


def held_out(names: Sequence[str]) -> list[str]:
    """Return the crops that no training sees: every sixth of the sorted names.

    >>> held_out([f"{n:02d}" for n in range(8)])
    ['00', '06']
    """
    return sorted(names)[::HELD_OUT_EVERY]


def read_crop(folder: Path, name: str) -> Crop:
    """Read one crop and its label; head and body (1) and tail (2) are one here."""
    image = np.asarray(nib.load(folder / "images" / name).dataobj, dtype=np.float32)
    label = np.asarray(nib.load(folder / "labels" / name).dataobj) > 0
    return crop_of(image, label)


class Augmented(Dataset[tuple[torch.Tensor, ...]]):
    """As many altered crops as there are steps and places in a batch, each from a seed of its own."""

    def __init__(self, crops: Sequence[Crop], settings: Settings) -> None:
        self._crops, self._settings = crops, settings

    def __len__(self) -> int:
        return self._settings.steps * self._settings.batch

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng((self._settings.seed, index))
        crop = self._crops[int(rng.integers(len(self._crops)))]
        return tuple(torch.from_numpy(one)[None] for one in augmented(crop, rng))


def trained(crops: Sequence[Crop], settings: Settings) -> nn.Module:
    """Return the network, trained."""
    torch.manual_seed(settings.seed)
    network = build_network().to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.steps)
    began = time.monotonic()
    recent = 0.0
    for step, (image, label, known) in enumerate(_batches(crops, settings)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(image.to(memory_format=torch.channels_last_3d))
        loss = _loss(logits.float(), label, known, settings.volume_weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        plan.step()
        recent += loss.item()
        if step % 100 == 99:
            print(
                f"{step + 1} of {settings.steps}: loss {recent / 100:.4f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            recent = 0.0
    return network.eval()


def _batches(crops: Sequence[Crop], settings: Settings) -> Iterator[tuple[torch.Tensor, ...]]:
    return iter(
        DataLoader(Augmented(crops, settings), batch_size=settings.batch, num_workers=1, prefetch_factor=8)
    )


def _loss(
    logits: torch.Tensor, label: torch.Tensor, known: torch.Tensor, volume_weight: float
) -> torch.Tensor:
    """Dice, cross-entropy and the relative error of the volume, where the crop shows something."""
    axes = (1, 2, 3, 4)
    probability, truth = torch.sigmoid(logits) * known, label * known
    total = (probability + truth).sum(axes)
    dice = 1.0 - (2.0 * (probability * truth).sum(axes) + 1.0) / (total + 1.0)
    entropy = functional.binary_cross_entropy_with_logits(logits, label, reduction="none") * known
    volume = (probability.sum(axes) - truth.sum(axes)).abs() / (truth.sum(axes) + 100.0)
    return dice.mean() + 3.0 * entropy.sum() / known.sum() + volume_weight * volume.mean()


def in_box(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a crop in the middle of a box, zeros around it; of an axis that is longer, its middle."""
    box = np.zeros(BOX_SHAPE, dtype=np.float32)
    into, out_of = _places(values.shape)
    box[into] = values[out_of]
    return box


def _places(shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return which voxels of a box are which of a crop."""
    pairs = []
    for size, n in zip(BOX_SHAPE, shape, strict=True):
        common = min(size, n)
        pairs.append([slice((whole - common) // 2, (whole - common) // 2 + common) for whole in (size, n)])
    into, out_of = zip(*pairs, strict=True)
    return into, out_of


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the network makes of a crop: overlap, and the volumes drawn and found, ml."""

    name: str
    dice: float
    drawn_ml: float
    found_ml: float


def found_in_crop(image: NDArray[np.float32], segment: Segmenter) -> NDArray[np.float32]:
    """Return the probabilities (I, J, K) inside a crop; 0 where it is longer than a box."""
    box = normalised(in_box(image), in_box(np.ones_like(image)) > 0)
    into, out_of = _places(image.shape)
    probability = np.zeros_like(image)
    probability[out_of] = opinions(segment, box[None]).mean(axis=0)[0][into]
    return probability


def judged(name: str, crop: Crop, segment: Segmenter) -> Judged:
    """Compare what is found inside a crop with what was drawn."""
    probability = found_in_crop(crop.image, segment)
    found, drawn = probability > 0.5, crop.label > 0.5
    return Judged(
        name=name,
        dice=float(2.0 * (found & drawn).sum() / (found.sum() + drawn.sum())),
        drawn_ml=float(drawn.sum()) / 1000.0,
        found_ml=float(probability.sum()) / 1000.0,
    )


def report_of(rows: Sequence[Judged], settings: Settings, seconds: float, people: int) -> str:
    """Return the report of a training."""
    dice = np.array([row.dice for row in rows])
    error = np.array([100.0 * (row.found_ml / row.drawn_ml - 1.0) for row in rows])
    drawn, found = (np.array([getattr(row, name) for row in rows]) for name in ("drawn_ml", "found_ml"))
    parameters = sum(one.numel() for one in build_network().parameters())
    worst = sorted(rows, key=lambda row: row.dice)[:5]
    made = (
        f"Made by `training/hippocampus.py`: {people} crops, {settings.steps} steps of {settings.batch}, highest "
        f"learning rate {settings.learning_rate:g}, weight of the volume {settings.volume_weight:g}, seed "
        f"{settings.seed}; channels {', '.join(map(str, CHANNELS))}, {parameters:,} parameters; torch "
        f"{torch.__version__}; {seconds / 60:.0f} min."
    )
    return "\n".join(
        [
            "# The hippocampus network",
            "",
            made,
            "",
            f"Judged on the {len(rows)} crops that no training saw (every sixth), inside the crop:",
            "",
            "| what | measured |",
            "|---|---|",
            f"| Dice, mean (SD) | {dice.mean():.3f} ({dice.std(ddof=1):.3f}) |",
            f"| Dice, lowest | {dice.min():.3f} |",
            f"| volume found against drawn, mean (SD), % | {error.mean():+.1f} ({error.std(ddof=1):.1f}) |",
            f"| r of the volumes | {np.corrcoef(drawn, found)[0, 1]:.3f} |",
            "",
            "| lowest | Dice | drawn, ml | found, ml |",
            "|---|---|---|---|",
            *(f"| {row.name} | {row.dice:.3f} | {row.drawn_ml:.2f} | {row.found_ml:.2f} |" for row in worst),
            "",
            f"Weights: `models/{WEIGHTS.name}`, float16, sha256 `{sha256_of_file(WEIGHTS)}`.",
            f"Licence of the weights: {LICENCE}.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, store the weights, judge the stored weights, write the report."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("crops", type=Path, metavar="CROPS_FOLDER")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args(arguments)
    settings = Settings(steps=options.steps, seed=options.seed)
    torch.set_num_threads(os.cpu_count() or 1)
    names = sorted(path.name for path in (options.crops / "images").glob("*.nii.gz"))
    left_out = held_out(names)
    began = time.monotonic()
    network = trained([read_crop(options.crops, name) for name in names if name not in left_out], settings)
    weights = {name: values.detach().half().contiguous() for name, values in network.state_dict().items()}
    save_file(
        weights,
        WEIGHTS,
        metadata={"licence": LICENCE, "seed": str(settings.seed), "steps": str(settings.steps)},
    )
    network.load_state_dict({name: values.float() for name, values in weights.items()})
    segment = segmenter_of(network)
    rows = [judged(name, read_crop(options.crops, name), segment) for name in left_out]
    text = report_of(rows, settings, time.monotonic() - began, len(names) - len(left_out))
    write_text(REPORT, text)
    print(text)


if __name__ == "__main__":
    main()
