from dataclasses import replace

from analyses.labels import LONGEST, short_label, store_labels
from tests.analyses.builders import planted_result


def labels(*stores: tuple[str, str, str]) -> list[str]:
    plain = planted_result(images=1, blocks=10).identity
    identities = [replace(plain, store=store, model=model, source=source) for store, model, source in stores]
    found = store_labels(identities)
    assert list(found) == [store for store, *_ in stores]
    return list(found.values())


def test_model_and_source_name_a_store() -> None:
    assert labels(("a", "llava-hf/llava-1.5-7b-hf", "coco"), ("b", "llava-hf/llava-1.5-7b-hf", "winoground")) == [
        "llava-1.5-7b-hf · coco",
        "llava-1.5-7b-hf · winoground",
    ]
    assert labels(("a", "", "coco")) == ["unnamed model · coco"]


def test_stores_of_one_model_and_source_differ_by_the_end_of_their_path() -> None:
    found = labels(("/x/one/s", "m", "coco"), ("/x/two/s", "m", "coco"), ("/y/two/s", "m", "coco"), ("s", "n", "coco"))
    assert found == ["m · coco · one/s", "m · coco · x/two/s", "m · coco · y/two/s", "n · coco"]
    assert labels(("s", "m", "coco"), ("t/s", "m", "coco")) == ["m · coco · s", "m · coco · t/s"]


def test_long_labels_lose_their_middle() -> None:
    assert short_label("a" * LONGEST) == "a" * LONGEST
    short = short_label("begin" + "x" * 100 + "end")
    assert len(short) == LONGEST
    assert (short[:5], short[-3:], short.count("…")) == ("begin", "end", 1)
    assert short_label("abcdefghij", 6) == "ab…hij"
