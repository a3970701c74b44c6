"""An audit that does not fit the device says what helps an audit."""

import re

import pytest
import torch

from engine.models.load import LoadedModel
from tests.engine.audit.conftest import ExtractOnce


def test_what_does_not_fit_the_device_says_what_helps_an_audit(
    extract: ExtractOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_keywords: object) -> None:
        raise torch.OutOfMemoryError

    store = extract()
    monkeypatch.setattr("engine.capture.extraction.capture_batch", full)
    monkeypatch.setattr(LoadedModel, "devices", "cuda:0, cuda:1")
    audit = store.audit()
    assert audit.exit_code == 1
    assert re.search(r"does not fit cuda:0, cuda:1: free its memory, or audit on another --device\.", audit.text), (
        audit.text
    )
    assert "--batch-size" not in audit.text
