"""Familiarity: how much what the X-encoder sees is like what its bundle was fitted to.

Invariant: it follows from the visual tokens alone, so it is the same live and offline, whatever
was asked; it falls strictly as they move away from what was fitted, from 1 towards 0.

The visual tokens of a clip are pooled to their mean, whose Mahalanobis distance from those that
were fitted counts, with a shrunk covariance. The confidence of what is said tells far less: a
network without a word for what it sees says another one as surely.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vljepa_ros.bundle.manifest import read_manifest, write_manifest
from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.errors import BundleError

from .runtime import Clips, Runtime
from .tensors import Tensor

FILE = "familiarity.npz"
THRESHOLD = 0.5  # what was fitted begins to end here
AXES = 128  # of the covariance, that are kept each by itself
SHRINK = 0.03  # of the mean variance, that is added to each
USUAL = 0.95  # the familiarity of what was held out, in the middle
KNOWN = 0.995  # of what was held out is to be familiar, and what is MARGIN times as far
MARGIN = 1.15
LEAST = 1e-6  # variance, of the tokens' own squares, and distance: of footage that stands still
FEWEST = 40  # clips to fit to, and as many held out


@dataclass(frozen=True)
class Familiarity:
    """What the clips that it was fitted to look like. Dv: numbers of a visual token.

    `mean` float32 `[Dv]`, `axes` float32 `[K, Dv]` with `variances` float32 `[K]`, and the
    variance `rest` of every other direction. `near`: the distance whose familiarity is 0.95,
    `far`: that whose is 0.5.
    """

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float
    near: float
    far: float

    def distance(self, pooled: np.ndarray) -> np.ndarray:
        """Mahalanobis distances, float32 `[n]`, of pooled tokens `[n, Dv]`."""
        apart = pooled - self.mean
        along = apart @ self.axes.T
        squares = along**2
        left = np.maximum(0.0, (apart**2).sum(-1) - squares.sum(-1))
        return np.asarray(np.sqrt((squares / self.variances).sum(-1) + left / self.rest))

    def of(self, pooled: np.ndarray) -> np.ndarray:
        """Familiarities, 0..1, `[n]`, of pooled tokens `[n, Dv]`; 0 where they are not finite."""
        power = np.log(USUAL / (1 - USUAL)) / np.log(self.far / self.near)
        with np.errstate(over="ignore", invalid="ignore"):
            found = 1 / (1 + (self.distance(pooled) / self.far) ** power)
        return np.asarray(np.nan_to_num(found, nan=0.0))


def pool(tokens: Tensor) -> np.ndarray:
    """The mean, float32 `[Dv]`, of a clip's visual tokens `[N, Dv]`, copied from their device."""
    return np.asarray(np.asarray(tokens).mean(0, dtype=np.float32))


def pooled(model: Runtime, clips: Clips) -> np.ndarray:
    """The pooled tokens, float32 `[B, Dv]`, of clips, uint8 `[B, T, S, S, 3]`."""
    return np.stack([pool(tokens) for tokens in model.encode(clips)])


def add_familiarity(folder: Path, found: Familiarity, threshold: float = THRESHOLD) -> None:
    """Put it into the bundle in `folder`, in the place of one that is there."""
    with (folder / FILE).open("wb") as stream:
        np.savez(stream, **vars(found))
    manifest, _ = read_manifest(folder)
    manifest["familiarity"] = {"file": FILE, "threshold": threshold}
    manifest.setdefault("files", {})[FILE] = ""
    write_manifest(folder, manifest)


def load_familiarity(bundle: Bundle) -> Familiarity | None:
    """That of a bundle; None where it has none. BundleError, with its file, where it is damaged."""
    spec = bundle.familiarity
    if spec is None:
        return None
    try:
        with np.load(spec.file, allow_pickle=False) as stored:
            found = Familiarity(
                *(stored[name].astype(np.float32) for name in ("mean", "axes", "variances")),
                *(float(stored[name]) for name in ("rest", "near", "far")),
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{spec.file} cannot be read ({error}); fit it again, or take the section "
            "'familiarity' out of the manifest."
        ) from error
    width = bundle.graphs["x_encoder"].outputs["visual_tokens"].shape[-1]
    kept = len(found.variances)
    if found.mean.shape != (width,) or found.axes.shape != (kept, width):
        raise BundleError(
            f"{spec.file} is of visual tokens of {found.mean.size} numbers, and the bundle's have "
            f"{width}; fit it again."
        )
    if not (0 < found.near < found.far and found.rest > 0 and (found.variances > 0).all()):
        raise BundleError(f"{spec.file} holds distances or variances out of order; fit it again.")
    return found


def fit(seen: np.ndarray, held_out: np.ndarray) -> Familiarity:
    """From pooled tokens: `[n, Dv]` of what it is fitted to, `[m, Dv]` of other scenes like it.

    What was held out says how far what is known reaches: of it 0.995 are familiar, with a margin.
    BundleError where there are too few to tell.
    """
    if min(len(seen), len(held_out)) < FEWEST:
        raise BundleError(
            f"Familiarity needs {FEWEST} clips to fit to and {FEWEST} others, and there are "
            f"{len(seen)} and {len(held_out)}; give more footage."
        )
    mean = seen.mean(0, dtype=np.float64)
    apart = seen - mean
    variances, axes = np.linalg.eigh(apart.T @ apart / len(seen))  # in rising order
    variances = np.maximum(variances, 0.0)
    added = max(SHRINK * variances.mean(), LEAST * float((mean**2).mean()), LEAST)
    kept = min(AXES, len(variances))
    others = variances[:-kept]
    found = Familiarity(
        mean.astype(np.float32),
        axes[:, -kept:].T.astype(np.float32),
        (variances[-kept:] + added).astype(np.float32),
        float(added + (others.mean() if len(others) else 0.0)),
        near=1.0,
        far=2.0,
    )
    distances = found.distance(held_out)
    near = max(LEAST, float(np.median(distances)))
    far = MARGIN * max(near, float(np.quantile(distances, KNOWN)))
    return Familiarity(found.mean, found.axes, found.variances, found.rest, near, far)
