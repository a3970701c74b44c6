"""The family table and its templates."""

import pytest

from engine.errors import UsageError
from engine.models.families import FAMILIES, Family, family_of
from engine.prompts import read_prompts


def test_llava_is_filled_as_published() -> None:
    llava = family_of("llava", "llava-hf/llava-1.5-7b-hf")
    assert llava.fill("What is it?", "<image>") == ("USER: <image>\nWhat is it? ASSISTANT:", len("USER: <image>\n"))
    assert llava.fill("", "<image>") == ("USER: <image>\nASSISTANT:", len("USER: <image>\nASSISTANT:"))


def test_instructblip_is_given_the_bare_prompt_and_nothing_for_the_empty_one() -> None:
    instructblip = family_of("instructblip", "Salesforce/instructblip-vicuna-7b")
    assert instructblip.fill("What is it?", "<image>") == ("What is it?", 0)
    assert instructblip.fill("", "<image>") == ("", 0)


@pytest.mark.parametrize("prompt", ["{prompt}", "{image}", "a {image} b {prompt}"])
def test_braces_in_a_prompt_are_text(prompt: str) -> None:
    text, start = FAMILIES["llava"].fill(prompt, "<image>")
    assert text == f"USER: <image>\n{prompt} ASSISTANT:"
    assert text[start : start + len(prompt)] == prompt


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_places_one_image_or_none_and_has_published_prompts(family: Family) -> None:
    for template in (family.template, family.empty_template):
        assert template.count("{image}") == int(family.image_in_text)
    assert family.image_count_settings
    assert family.template.count("{prompt}") == 1
    assert "{prompt}" not in family.empty_template
    assert family.norm_kind in ("rms", "layer")
    assert read_prompts(["normal", "question", "empty"], family=family.name, vocabulary=None, seed=0)


def test_an_unknown_family_is_wrong_usage_and_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"words is a 'llama' model; .* llava \(LLaVA-1\.5\)"):
        family_of("llama", "words")
