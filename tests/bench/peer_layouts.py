"""Hidden states in the layouts that people use without a store, and how each gives one layer of all samples.

One ``torch.save`` per sample holds all layers together, so a layer costs the whole file, unless that is mapped. One
SQLite row per sample and layer holds a ``torch.save`` blob: VLM-Lens writes its activations so, and its loaders take
every row of the table.
"""

import io
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

__all__ = ["load_layer", "map_layer", "query_layer", "save_rows", "select_layer"]


def load_layer(paths: Sequence[Path], layer: int) -> list[torch.Tensor]:
    """States (token, dim) of a layer from files as ``usual_script.save_samples`` writes them."""
    # A copy, else every file stays in memory with its layer.
    return [torch.load(path)["hidden_states"][layer].clone() for path in paths]


def map_layer(paths: Sequence[Path], layer: int) -> list[torch.Tensor]:
    """States (token, dim) of a layer from the same files, of which only what is looked at is read."""
    return [torch.load(path, mmap=True)["hidden_states"][layer] for path in paths]


def save_rows(paths: Sequence[Path], database: Path) -> None:
    """Copy the same files into one row per sample and layer."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE tensors (id INTEGER PRIMARY KEY, name TEXT, layer TEXT, tensor BLOB)")
        for path in paths:
            for layer, states in enumerate(torch.load(path)["hidden_states"]):
                blob = io.BytesIO()
                torch.save(states.clone(), blob)
                row = (path.stem, f"layers.{layer}", blob.getvalue())
                connection.execute("INSERT INTO tensors (name, layer, tensor) VALUES (?, ?, ?)", row)


def select_layer(database: Path, layer: int) -> list[torch.Tensor]:
    """States (token, dim) of a layer by the loader that reads the table and then takes what it needs."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT layer, tensor FROM tensors")
        tensors = [(name, torch.load(io.BytesIO(blob))) for name, blob in rows]
    return [states for name, states in tensors if name == f"layers.{layer}"]


def query_layer(database: Path, layer: int) -> list[torch.Tensor]:
    """States (token, dim) of a layer by a query that asks for no other."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT tensor FROM tensors WHERE layer = ?", (f"layers.{layer}",))
        return [torch.load(io.BytesIO(blob)) for (blob,) in rows]
