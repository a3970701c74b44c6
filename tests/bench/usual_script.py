"""The script that people write without a store: one ``torch.save`` per sample, then full pair matrices per layer."""

from pathlib import Path

import numpy as np
import torch

from engine.store import open_store
from engine.vocabulary import ROLE_CODES

__all__ = ["pair_matrix_cosines", "save_samples"]

_TEXT = (ROLE_CODES["instruction"], ROLE_CODES["template"])


def save_samples(store: Path, folder: Path, dtype: str) -> list[Path]:
    """Save every sample of a store as the user's script would have: states in the model's dtype, and roles."""
    folder.mkdir(parents=True)
    opened = open_store(store)
    paths = []
    for number, sample_id in enumerate(opened.samples["sample_id"]):
        sample = opened.sample(sample_id)
        states = torch.from_numpy(np.ascontiguousarray(sample["hidden_states"].values)).to(getattr(torch, dtype))
        paths.append(folder / f"{number:04d}.pt")
        torch.save({"hidden_states": states, "role": torch.from_numpy(sample["role"].values)}, paths[-1])
    return paths


def pair_matrix_cosines(paths: list[Path]) -> np.ndarray:
    """Mean cosines (sample, layer, pair) of image–text, image–image and text–text, all pairs, without self-pairs."""
    results = []
    for path in paths:
        saved = torch.load(path)
        image = saved["role"] == ROLE_CODES["image"]
        text = torch.isin(saved["role"], torch.tensor(_TEXT))
        curves = []
        for layer in saved["hidden_states"]:
            unit = torch.nn.functional.normalize(layer.float(), dim=-1)
            v, w = unit[image], unit[text]
            curves.append([(v @ w.T).mean(), _off_diagonal_mean(v @ v.T), _off_diagonal_mean(w @ w.T)])
        results.append(torch.tensor(curves).numpy())
    return np.stack(results)


def _off_diagonal_mean(matrix: torch.Tensor) -> torch.Tensor:
    count = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))
