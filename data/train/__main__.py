"""Regenerate ``data/demo``: scenes, captions, tokenizer, weights and their score.

``python -m data.train`` draws the demo scenes, trains the demo model from scratch on other scenes of the same kind,
measures it on scenes that neither training nor the demo has seen, and writes

- ``images/*.png`` and ``captions.json`` (official COCO captions format),
- ``model/``: a folder for transformers' Auto classes (float16 safetensors, no remote code),
- ``model/score.json``: what was measured, on how much, from which seeds and steps, with which library versions.

Seeds are fixed and torch's deterministic algorithms are on: two runs with the same libraries, threads and kind of
processor give the same bytes. ``--work`` keeps each finished stage's weights in a folder, and a later run goes on from
there; changed settings never take up old weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data.train.demo import write_demo_scenes
from data.train.pipeline import make_demo_model

DEMO = Path(__file__).resolve().parent.parent / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.train", description="Regenerate data/demo.")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder to write (default: data/demo)")
    parser.add_argument("--work", type=Path, help="folder that keeps intermediate weights (default: none kept)")
    parser.add_argument("--scenes-only", action="store_true", help="write scenes and captions, train nothing")
    options = parser.parse_args()
    write_demo_scenes(options.out)
    if not options.scenes_only:
        make_demo_model(options.out / "model", options.work)


if __name__ == "__main__":
    main()
