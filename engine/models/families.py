"""What differs between model families, as data.

Code asks the table; it never asks for a family's name. A new family is a new row.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.errors import UsageError

__all__ = ["FAMILIES", "Family", "SideText", "family_of"]


class SideText(NamedTuple):
    """A second tokenization of each filled template, for a text encoder beside the language model.

    Attributes
    ----------
    inputs
        What the processor makes of the text and the model takes, token ids first; right-padded with zeros in a batch.
    tokenizer
        The processor's attribute that makes them, and the checkpoint's folder with its files.
    config
        The part of the configuration that says how many tokens there can be.
    """

    inputs: tuple[str, ...]
    tokenizer: str
    config: str


@dataclass(frozen=True)
class Family:
    """One family of vision large language models.

    Attributes
    ----------
    name
        ``config.model_type`` of transformers, and the name of the prompt table.
    title
        The name researchers use.
    processor
        transformers' class of its processor. Not left to the checkpoint's files: those of the published InstructBLIP 7B
        name the processor of a video model.
    template
        Text around an instruction; ``{image}`` stands for the image token, ``{prompt}`` for the instruction. Without
        ``{image}`` the processor itself puts the image tokens in front of everything, BOS too.
    empty_template
        The least that the architecture needs when there is no instruction at all.
    image_count_settings
        Settings of ``processor_config.json`` from which the processor knows how many tokens an image takes; the first
        must be there.
    patch_grid
        Whether image tokens are the patches of a grid. Where not, they are learned queries, ``config.num_query_tokens``
        of them, which lie nowhere on the image.
    side_text
        What a text encoder beside the language model reads; None where there is none.
    image_states_depend_on_prompt
        Whether the states of image tokens change with the prompt. False for causal models that read the image before
        the instruction; checked with two prompts when a model is loaded.
    norm_kind
        The language model's final norm: ``rms`` or ``layer``.
    checked
        What has been checked of this family, in words for ``strata models``.
    """

    name: str
    title: str
    processor: str
    template: str
    empty_template: str
    image_count_settings: tuple[str, ...]
    patch_grid: bool
    side_text: SideText | None
    image_states_depend_on_prompt: bool
    norm_kind: Literal["rms", "layer"]
    checked: str

    @property
    def image_in_text(self) -> bool:
        """Whether the template places the image."""
        return "{image}" in self.template

    def fill(self, prompt: str, image_token: str) -> tuple[str, int]:
        """Put a prompt into the template.

        Parameters
        ----------
        prompt
            The instruction alone; empty for the empty prompt.
        image_token
            The processor's image placeholder, for example ``<image>``.

        Returns
        -------
        text : str
            The filled template, with one image placeholder where the template places the image.
        start : int
            The character at which the prompt starts (the text's length for the empty prompt).
        """
        template = (self.template if prompt else self.empty_template).replace("{image}", image_token)
        before, marker, after = template.partition("{prompt}")
        return (before + prompt + after, len(before)) if marker else (template, len(template))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llava",
            title="LLaVA-1.5",
            processor="LlavaProcessor",
            template="USER: {image}\n{prompt} ASSISTANT:",
            empty_template="USER: {image}\nASSISTANT:",
            image_count_settings=("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"),
            patch_grid=True,
            side_text=None,
            image_states_depend_on_prompt=False,
            norm_kind="rms",
            checked="states, roles and patches against transformers on random-weight models of this architecture, "
            "and on the trained demo model; not yet against the published 7B and 13B checkpoints",
        ),
        Family(
            name="instructblip",
            title="InstructBLIP with Vicuna",
            processor="InstructBlipProcessor",
            template="{prompt}",
            empty_template="",
            image_count_settings=("num_query_tokens",),
            patch_grid=False,
            side_text=SideText(("qformer_input_ids", "qformer_attention_mask"), "qformer_tokenizer", "qformer_config"),
            image_states_depend_on_prompt=True,
            norm_kind="rms",
            checked="states, roles and both paddings against transformers on random-weight models of this "
            "architecture; not yet against the published Vicuna 7B and 13B checkpoints",
        ),
    )
}


def family_of(model_type: str, model_id: str) -> Family:
    """Look up the family of a checkpoint.

    Raises
    ------
    UsageError
        Where no row of the table describes ``model_type``.
    """
    if model_type not in FAMILIES:
        known = ", ".join(f"{family.name} ({family.title})" for family in FAMILIES.values())
        raise UsageError(
            f"{model_id} is a {model_type!r} model; strata reads vision large language models of these families: "
            f"{known}. Choose another --model (`strata models` says what was checked of each)."
        )
    return FAMILIES[model_type]
