"""From nothing to a saved, scored model folder."""

from __future__ import annotations

import hashlib
import json
import time
from copy import deepcopy
from itertools import islice
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from data.train.evaluate import Score, captions_of, score_captions
from data.train.examples import build_pool
from data.train.model import DEMO, build_model, build_processor
from data.train.scenes import draw, scenes
from data.train.templates import NORMAL_PROMPTS, QUESTION_PROMPTS
from data.train.tokenizer import build_tokenizer
from data.train.train import DEMO_RUN, Learner, PatchReadout, Report, Run, Stage, train_captions, train_vision

__all__ = ["TEST_SCENES", "TEST_SEED", "make_demo_model", "save", "score"]

WEIGHTS_SEED = 0
TEST_SEED = 3
TEST_SCENES = 500
PEEK_SEED = 2
STAGES = ("vision", "sparse", "full", "polish")
_REPORT_EVERY = 50
_PEEK_EVERY = 250
_PEEK_SCENES = 100


def make_demo_model(folder: Path, work: Path | None, run: Run = DEMO_RUN) -> None:
    """Train, save and score the demo model.

    Parameters
    ----------
    folder : pathlib.Path
        The model folder to write.
    work : pathlib.Path or None
        Where each stage's weights are kept, and looked for before the stage is trained.
    run : Run
    """
    torch.use_deterministic_algorithms(True)
    processor = build_processor(DEMO, build_tokenizer())
    pool = build_pool(run.pool_seed, run.pool, DEMO.image, DEMO.patch)
    torch.manual_seed(WEIGHTS_SEED)
    model = build_model(DEMO, processor.tokenizer)
    readout = PatchReadout(DEMO.width)
    for name in STAGES:
        stage: Stage = getattr(run, name)
        kept = None if work is None else work / f"{name}-{_fingerprint(run, name)}.safetensors"
        if kept is not None and kept.exists():
            load_model(_pair(model, readout), kept)
            continue
        train = train_vision if name == "vision" else train_captions
        train(Learner(model, processor, readout), pool, stage, _reporter(name, model, processor, work))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_model(_pair(model, readout), str(kept))
    save(model, processor, folder)
    record = score(folder)
    record |= {"training": _describe(run)}
    (folder / "score.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write a model folder for the Auto classes, weights in float16; ``model`` itself stays as it is."""
    half = LlavaForConditionalGeneration(deepcopy(model.config))
    half.generation_config = model.generation_config
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    processor.save_pretrained(folder)


def score(folder: Path) -> dict[str, object]:
    """Measure a saved model on the held-out test scenes.

    Returns
    -------
    dict
        ``objects``: the headline, with the first normal prompt in float32; ``by_prompt``: all prompts in float32;
        ``by_dtype``: the headline's prompt in each dtype.
    """
    processor = AutoProcessor.from_pretrained(folder)
    chosen = list(islice(scenes(TEST_SEED), TEST_SCENES))
    images = [draw(scene) for scene in chosen]

    def measure(dtype: torch.dtype, prompt: str) -> Score:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        return score_captions(chosen, captions_of(model, processor, images, prompt))

    by_prompt = {prompt: measure(torch.float32, prompt) for prompt in (*NORMAL_PROMPTS, *QUESTION_PROMPTS, "")}
    headline = by_prompt[NORMAL_PROMPTS[0]]
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    by_dtype = {name: measure(dtype, NORMAL_PROMPTS[0]) for name, dtype in dtypes.items()}
    return {
        "objects": headline.objects,
        "objects_and_relations": headline.objects_and_relations,
        "scenes": TEST_SCENES,
        "scenes_seed": TEST_SEED,
        "prompt": NORMAL_PROMPTS[0],
        "by_prompt": {prompt: value._asdict() for prompt, value in by_prompt.items()},
        "by_dtype": {name: value._asdict() for name, value in {"float32": headline, **by_dtype}.items()},
    }


def _pair(model: nn.Module, readout: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"model": model, "readout": readout})


def _describe(run: Run) -> dict[str, object]:
    return {
        "weights_seed": WEIGHTS_SEED,
        "pool_seed": run.pool_seed,
        "pool": run.pool,
        "stages": {name: _describe_stage(getattr(run, name)) for name in STAGES},
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def _describe_stage(stage: Stage) -> dict[str, object]:
    return stage._asdict() | {"rates": stage.rates._asdict()}


def _fingerprint(run: Run, name: str) -> str:
    """Name weights after everything that made them, so that weights of other settings are never taken up."""
    stages = [getattr(run, earlier) for earlier in STAGES[: STAGES.index(name) + 1]]
    told = repr((DEMO, WEIGHTS_SEED, run.pool_seed, run.pool, stages))
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _reporter(name: str, model: LlavaForConditionalGeneration, processor: LlavaProcessor, work: Path | None) -> Report:
    began = time.monotonic()
    losses: list[float] = []
    chosen = list(islice(scenes(PEEK_SEED), _PEEK_SCENES))
    images = [draw(scene) for scene in chosen]

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % _REPORT_EVERY == 0:
            mean = sum(losses[-_REPORT_EVERY:]) / _REPORT_EVERY
            print(f"{name} step {step}: loss {mean:.4f}, {time.monotonic() - began:.0f} s", flush=True)
        if step % _PEEK_EVERY == 0 and name != "vision":
            texts = captions_of(model, processor, images, NORMAL_PROMPTS[0])
            print(f"{name} step {step}: {score_captions(chosen, texts)} {texts[:2]}", flush=True)
            if work is not None:
                save(model, processor, work / "latest")

    return report
