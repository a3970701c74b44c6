"""Where the numbers of a page come from: model, source, prompts, counts, versions, and commands."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analyses.identity import StoreIdentity
from analyses.report.commands import extract_command
from analyses.report.section import Table
from analyses.report.stores import ReportedStore

__all__ = ["StoreProvenance", "describe_store"]

_UNKNOWN = "not in the results: strata report --store STORE reads it"
_MOST_BAD = 20


class StoreProvenance(NamedTuple):
    """What is known of one store.

    Attributes
    ----------
    label : str
    facts : list of (str, str)
    prompts : Table, or None
    bad : Table, or None
        Samples that could not be stored, with their reasons.
    command : str
        That extracts it; empty where the store was not read.
    """

    label: str
    facts: list[tuple[str, str]]
    prompts: Table | None
    bad: Table | None
    command: str


def describe_store(
    label: str, identity: StoreIdentity, reported: ReportedStore | None, verified: str
) -> StoreProvenance:
    """Collect what the results and, where it was read, the store itself say.

    Parameters
    ----------
    label : str
    identity : StoreIdentity
        As of the results.
    reported : ReportedStore or None
    verified : str
        Of `stores.verification`; empty where that was not asked.
    """
    counts = identity.completeness
    facts = {
        "Model": identity.model or "unnamed",
        "Revision": _UNKNOWN,
        "Source": identity.source,
        "Format version": _UNKNOWN,
        "Samples": f"{counts.stored_samples:,} of {counts.planned_samples:,} planned samples, in "
        f"{counts.stored_parts:,} of {counts.planned_parts:,} parts",
        "Bad samples": f"{counts.bad_samples:,}",
        "Image states see the prompt": {True: "yes", False: "no", None: "unknown"}[
            identity.image_states_depend_on_prompt
        ],
        "Plan": identity.plan_sha256,
        "Parts": identity.parts_sha256,
        "Extracted with": _UNKNOWN,
        "Store": verified or "not verified",
    }
    if reported is None:
        return StoreProvenance(label, list(facts.items()), None, None, "")
    record, manifests = reported.store.record, [part.manifest for part in reported.store.parts]
    model, source = record["model"], record.get("source", {})
    images = f", {source['images']:,} images" if "images" in source else ""
    split = f", split {source['split']}" if source.get("split") else ""
    facts |= {
        "Revision": str(model.get("revision", "unknown")),
        "Model": f"{identity.model or 'unnamed'} ({model.get('class', 'unknown class')}, {model.get('dtype', '?')}, "
        f"{model['blocks']} blocks)",
        "Source": f"{identity.source}{split}{images}, seed {record.get('seed', 'unknown')}",
        "Format version": str(record["format_version"]),
        "Extracted with": "; ".join(dict.fromkeys(_run(manifest["run"]) for manifest in manifests)) or "no part yet",
    }
    if reported.note:
        facts["Note"] = reported.note
    prompts = [[str(one.get(name, "")) for name in ("prompt_id", "kind", "text")] for one in record.get("prompts", ())]
    bad = [(one["sample_id"], one["reason"]) for manifest in manifests for one in manifest["bad_samples"]]
    return StoreProvenance(
        label,
        list(facts.items()),
        Table("Prompts", ("prompt", "kind", "text"), prompts) if prompts else None,
        Table("Bad samples", ("sample", "reason"), _first(bad), open=True) if bad else None,
        extract_command(record, reported.path),
    )


def _run(run: Mapping[str, object]) -> str:
    versions = run.get("versions")
    named = versions if isinstance(versions, Mapping) else {}
    how = [str(run[key]) for key in ("device", "dtype", "attention_kernel") if run.get(key)]
    return ", ".join([*(f"{name} {version}" for name, version in named.items()), *how])


def _first(bad: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    more = len(bad) - _MOST_BAD
    return [*bad[:_MOST_BAD], *([("…", f"and {more:,} more: strata inspect --bad lists them")] if more > 0 else [])]
