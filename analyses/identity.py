"""Which store a row of a result came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from analyses.completeness import Completeness, completeness
from engine import __version__
from engine.store import Store

__all__ = ["StoreIdentity", "identify", "settings_text"]


@dataclass(frozen=True)
class StoreIdentity:
    """What results say about a store.

    Attributes
    ----------
    store
        Name of its folder; its whole address where two stores of one analysis have the same name.
    model
        Model id.
    source
        Kind of source: ``coco``, ``folder``.
    plan_sha256, parts_sha256
        What was planned, and what of it was committed when it was analysed.
    image_states_depend_on_prompt
        None where the store does not say.
    completeness
        How much of the plan was committed.
    """

    store: str
    model: str
    source: str
    plan_sha256: str
    parts_sha256: str
    image_states_depend_on_prompt: bool | None
    completeness: Completeness

    def asdict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the counts of `Completeness` among them."""
        values = asdict(self)
        counts = values.pop("completeness")
        return {**values, **counts}

    @classmethod
    def fromdict(cls, values: Mapping[str, Any]) -> "StoreIdentity":
        """Take `asdict` back; further entries are ignored."""
        counts = Completeness(**{field.name: values[field.name] for field in fields(Completeness)})
        own = {field.name: values[field.name] for field in fields(cls) if field.name != "completeness"}
        return cls(**own, completeness=counts)


def identify(stores: Sequence[Store]) -> list[StoreIdentity]:
    """Name stores so that no two have the same name."""
    short = [_folder_name(store.url) for store in stores]
    return [
        StoreIdentity(
            store=name if short.count(name) == 1 else store.url,
            model=str(store.record["model"].get("id", "")),
            source=str(store.record["source"].get("kind", "")),
            plan_sha256=str(store.record["plan_sha256"]),
            parts_sha256=_digest(store),
            image_states_depend_on_prompt=store.record["model"].get("image_states_depend_on_prompt"),
            completeness=completeness(store),
        )
        for name, store in zip(short, stores, strict=True)
    ]


def settings_text(identities: Sequence[StoreIdentity], **settings: object) -> str:
    """Write down what a result depends on, this version of strata too: equal texts, equal results."""
    stores = [identity.asdict() for identity in identities]
    return json.dumps({"strata": __version__, "stores": stores, **settings}, sort_keys=True)


def _folder_name(url: str) -> str:
    return url.rsplit("/", 1)[-1] if "://" in url else Path(url).resolve().name


def _digest(store: Store) -> str:
    parts = [f"{part.name} {part.manifest['sha256']}" for part in store.parts]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
