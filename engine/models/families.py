"""What differs between model families, as data.

Code asks the table; it never asks for a family's name. A new family is a new row.
"""

from dataclasses import dataclass
from typing import Literal

from engine.errors import UsageError

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """One family of vision large language models.

    Attributes
    ----------
    name
        ``config.model_type`` of transformers, and the name of the prompt table.
    title
        The name researchers use.
    template
        Text around an instruction; ``{image}`` stands for the image token, ``{prompt}`` for the instruction.
    empty_template
        The least that the architecture needs when there is no instruction at all.
    image_states_depend_on_prompt
        Whether the states of image tokens change with the prompt. False for causal models that read the image before
        the instruction; checked with two prompts when a model is loaded.
    norm_kind, norm_weight_offset
        The language model's final norm: ``rms`` or ``layer``, and what is added to its weight (Gemma's 1).
    checked
        What has been checked of this family, in words for ``strata models``.
    """

    name: str
    title: str
    template: str
    empty_template: str
    image_states_depend_on_prompt: bool
    norm_kind: Literal["rms", "layer"]
    norm_weight_offset: float
    checked: str

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
            The filled template with one image placeholder.
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
            template="USER: {image}\n{prompt} ASSISTANT:",
            empty_template="USER: {image}\nASSISTANT:",
            image_states_depend_on_prompt=False,
            norm_kind="rms",
            norm_weight_offset=0.0,
            checked="states, roles and patches against transformers on random-weight models of this architecture, "
            "and on the trained demo model; not yet against the published 7B and 13B checkpoints",
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
