"""Capturing: forward passes with hooks, turned into parts of a store."""

from engine.capture.extraction import Extraction, Outcome, extract_parts
from engine.capture.ranks import Rank, find_rank

__all__ = ["Extraction", "Outcome", "Rank", "extract_parts", "find_rank"]
