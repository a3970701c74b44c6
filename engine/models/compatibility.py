"""Whether configuration and processor of a checkpoint fit each other and strata, before any weight is loaded."""

from typing import Any

from engine.errors import StrataError, UsageError
from engine.models.families import Family, SideText

__all__ = ["check_configuration", "check_image_size", "check_processor", "image_count_error"]


def check_configuration(config: Any, family: Family, model_id: str) -> None:
    """Check what a configuration says of its language model and of the image token.

    Raises
    ------
    UsageError
        Where the language model is no decoder, or the image has no token id.
    """
    text = config.get_text_config()
    if text.is_encoder_decoder:
        raise UsageError(
            f"the text model of {model_id} is {text.model_type!r}, an encoder–decoder; strata captures the residual "
            f"stream of a decoder-only language model. Choose such a variant ({family.title})."
        )
    if config.image_token_id is None:
        raise UsageError(
            f"config.json of {model_id} has no image_token_index, without which the model cannot tell where image "
            "features go: take a newer revision of the checkpoint, or set it to the tokenizer's id of the image token."
        )
    if not 0 <= config.image_token_id < text.vocab_size:
        raise UsageError(
            f"image_token_index of {model_id} is {config.image_token_id}, but its text model has {text.vocab_size} "
            "embeddings (vocab_size): resize them (resize_token_embeddings) and save the checkpoint again."
        )


def check_processor(processor: Any, config: Any, family: Family, model_id: str) -> None:
    """Check a checkpoint's processor against its configuration.

    Raises
    ------
    UsageError
        Where its tokenizers cannot be used, the image token is missing or another than the model's, or it does not
        make as many image tokens as the model has queries.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{model_id} has no fast tokenizer, and roles need the character offsets that only those give: "
            "add a tokenizer.json to the checkpoint."
        )
    _check_image_token(str(processor.image_token), tokenizer, config, model_id)
    _check_image_count(processor, config, family, model_id)
    if family.side_text is not None:
        _check_side_tokenizer(processor, family.side_text, model_id)


def check_image_size(height: int, width: int, config: Any) -> None:
    """Check the pixels that a processor makes of an image against those that the vision tower has positions for.

    Raises
    ------
    StrataError
        With both sizes.
    """
    side = int(config.vision_config.image_size)
    if (height, width) != (side, side):
        raise StrataError(
            f"the processor made an image of {width} × {height} pixels, the vision tower takes {side} × {side}: check "
            "size, crop_size and do_center_crop of the image processor (preprocessor_config.json or "
            "processor_config.json)."
        )


def image_count_error(family: Family, made: int, expected: int) -> StrataError:
    """Build the refusal of a processor that makes other image tokens than the model takes."""
    return StrataError(
        f"the processor made {made} image tokens, the model expects {expected}: check {_count_settings(family)} in "
        "processor_config.json."
    )


def _check_image_token(image_token: str, tokenizer: Any, config: Any, model_id: str) -> None:
    token_id = tokenizer.convert_tokens_to_ids(image_token)
    if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != image_token:
        raise UsageError(
            f"the tokenizer of {model_id} has no token {image_token!r} to stand for the image: add it as a special "
            f"token, which must get the id {config.image_token_id} of image_token_index in config.json, or name the "
            "right one as image_token in processor_config.json."
        )
    if token_id != config.image_token_id:
        raise UsageError(
            f"the processor's image token {image_token!r} has id {token_id}, the model expects "
            f"{config.image_token_id}: check image_token in processor_config.json and image_token_index in config.json."
        )


def _check_image_count(processor: Any, config: Any, family: Family, model_id: str) -> None:
    made = getattr(processor, family.image_count_settings[0], None)
    if made is None:
        raise UsageError(
            f"the processor of {model_id} does not know how many tokens an image takes: set "
            f"{_count_settings(family)} in processor_config.json."
        )
    if not family.patch_grid and made != config.num_query_tokens:
        raise UsageError(
            f"the processor of {model_id} makes {made} image tokens, the model has {config.num_query_tokens} queries: "
            f"set {_count_settings(family)} in processor_config.json to that of config.json."
        )


def _check_side_tokenizer(processor: Any, side: SideText, model_id: str) -> None:
    # transformers takes the other tokenizer where this one's folder is missing, and only warns.
    if getattr(processor, side.tokenizer).get_vocab().items() <= processor.tokenizer.get_vocab().items():
        raise UsageError(
            f"{model_id} has no folder {side.tokenizer}: without it the language model's tokenizer is taken in its "
            "place, whose ids mean something else there. Download the checkpoint again, with its folders."
        )


def _count_settings(family: Family) -> str:
    *others, last = family.image_count_settings
    return f"{', '.join(others)} and {last}" if others else last
