"""The store: writing immutable parts, and opening them without the model.

``FORMAT.md`` beside this file is the public specification of what lies on disk.
"""

from engine.store.choices import lens_layers
from engine.store.commit import remove_leftovers
from engine.store.content import (
    BadSample,
    Coordinate,
    PartArray,
    PartContent,
    Selection,
    block_coordinate,
    in_dtypes,
    layer_coordinate,
    query_coordinate,
    role_coordinate,
    source_role_coordinate,
)
from engine.store.dtypes import BFLOAT16_NAN, LARGEST_NORM, held_dtype, round_mantissa, widen_bfloat16
from engine.store.layout import (
    KEY_COORDINATES,
    TENSOR_ARRAYS,
    TOKEN_COORDINATES,
    ArrayShape,
    BlockTensors,
    KeptOf,
    PartSize,
    model_arrays,
    part_arrays,
    part_name,
    predict_size,
)
from engine.store.manifest import canonical_json
from engine.store.model_tables import MODEL_ATTRIBUTES, ModelMatrix
from engine.store.model_view import ModelTables
from engine.store.part import Part, open_part
from engine.store.progress import (
    Filling,
    RankProgress,
    rank_progress,
    read_filling,
    recorded_world_size,
    recorded_world_sizes,
)
from engine.store.reader import Store, open_store
from engine.store.record import committed_parts, create_store, is_same_store, missing_files
from engine.store.repair import Removal, Repair, repair
from engine.store.schemas import PART_SAMPLES_SCHEMA, PLAN_SCHEMA, THUMBNAIL_SAMPLES_SCHEMA, VOCABULARY_SCHEMA
from engine.store.shards import writing_bytes
from engine.store.stream import Chunk, stream_bytes, stream_chunks
from engine.store.summary import ArraySummary, StoreSummary, summarise
from engine.store.tokens import TokenBatch
from engine.store.verify import Problem, Verification, verify
from engine.store.writer import write_part

__all__ = [
    "BFLOAT16_NAN",
    "KEY_COORDINATES",
    "LARGEST_NORM",
    "MODEL_ATTRIBUTES",
    "PART_SAMPLES_SCHEMA",
    "PLAN_SCHEMA",
    "TENSOR_ARRAYS",
    "THUMBNAIL_SAMPLES_SCHEMA",
    "TOKEN_COORDINATES",
    "VOCABULARY_SCHEMA",
    "ArrayShape",
    "ArraySummary",
    "BadSample",
    "BlockTensors",
    "Chunk",
    "Coordinate",
    "Filling",
    "KeptOf",
    "ModelMatrix",
    "ModelTables",
    "Part",
    "PartArray",
    "PartContent",
    "PartSize",
    "Problem",
    "RankProgress",
    "Removal",
    "Repair",
    "Selection",
    "Store",
    "StoreSummary",
    "TokenBatch",
    "Verification",
    "block_coordinate",
    "canonical_json",
    "committed_parts",
    "create_store",
    "held_dtype",
    "in_dtypes",
    "is_same_store",
    "layer_coordinate",
    "lens_layers",
    "missing_files",
    "model_arrays",
    "open_part",
    "open_store",
    "part_arrays",
    "part_name",
    "predict_size",
    "query_coordinate",
    "rank_progress",
    "read_filling",
    "recorded_world_size",
    "recorded_world_sizes",
    "remove_leftovers",
    "repair",
    "role_coordinate",
    "round_mantissa",
    "source_role_coordinate",
    "stream_bytes",
    "stream_chunks",
    "summarise",
    "verify",
    "widen_bfloat16",
    "write_part",
    "writing_bytes",
]
