"""Files that a user hands in: read whole, parsed as JSON, refused in one voice.

Every refusal says which file, what is wrong with it, what was expected and which option to look at. Nothing here knows
what the file means; the source and prompt readers do.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StrataError

__all__ = ["InputFile", "is_text", "name_few"]


@dataclass(frozen=True)
class InputFile:
    """One file that the user named.

    Attributes
    ----------
    path
        Where it lies.
    noun
        What it is to the user, such as ``annotation file``.
    expected
        The format it should have, as a phrase that completes "expected …".
    option
        The option that named it, such as ``--annotations``.
    """

    path: Path
    noun: str
    expected: str
    option: str

    def error(self, problem: str) -> StrataError:
        """Build the refusal of this file; ``problem`` completes "the annotation file X …"."""
        return StrataError(f"the {self.noun} {self.path} {problem}: expected {self.expected}; check {self.option}")

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises
        ------
        StrataError
            If there is no such file, it is a directory, the system refuses it, or it is empty.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            raise self.error("does not exist") from error
        except IsADirectoryError as error:
            raise self.error("is a directory") from error
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror})") from error
        if not data.strip():
            raise self.error("is empty")
        return data

    def parse(self, data: bytes, *, line: int | None = None, unique_keys: bool = False) -> object:
        """Parse ``data``, all of this file or one line of it, as JSON.

        Parameters
        ----------
        data
            UTF-8 (with or without a byte order mark), UTF-16 or UTF-32.
        line
            The number of the line that ``data`` is, for the message.
        unique_keys
            Refuse an object that has a key twice; JSON readers otherwise keep the last value silently.

        Raises
        ------
        StrataError
            If it is not JSON; the message has the line.
        """

        def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
            content = dict(pairs)
            if len(content) < len(pairs):
                keys = [key for key, _ in pairs]
                raise self.error(f"has the key {name_few(k for k in content if keys.count(k) > 1)} more than once")
            return content

        try:
            return json.loads(data, object_pairs_hook=unique if unique_keys else None)
        except json.JSONDecodeError as error:
            raise self.error(f"is not JSON (line {line or error.lineno}: {error.msg})") from error
        except UnicodeDecodeError as error:
            number = line or data.count(b"\n", 0, error.start) + 1
            raise self.error(f"is not JSON (line {number}: the text is not UTF-8)") from error
        except (ValueError, RecursionError) as error:
            place = f" (line {line})" if line else ""
            raise self.error(f"is not JSON that can be read{place}: {error}") from error

    def lines(self, data: bytes) -> Iterator[tuple[str, object]]:
        """Parse each line that is not blank; yield the words that point to it (``in line 3``) and what it holds.

        Only line feeds end a line: JSON text may hold Unicode's own breaks.

        Raises
        ------
        StrataError
            If a line is not JSON.
        """
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if line.strip():
                yield f"in line {number}", self.parse(line, line=number)

    def objects(
        self, rows: Sequence[object], section: str, keys: Sequence[str]
    ) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield each row of a list and the words that point to it (``at images[3]``); it is an object with every key.

        Raises
        ------
        StrataError
            If a row is something else, or lacks a key.
        """
        for index, row in enumerate(rows):
            where = f"at {section}[{index}]"
            yield where, self.json_object(where, row, keys)

    def json_object(self, where: str, value: object, keys: Sequence[str]) -> dict[str, object]:
        """Take ``value`` as a JSON object that has every key.

        Raises
        ------
        StrataError
            If it is something else, or lacks a key; the message says where.
        """
        if not isinstance(value, dict):
            raise self.error(f"holds {value!r:.80} {where}, not an object")
        for key in keys:
            if key not in value:
                raise self.error(f"has no '{key}' {where}")
        return value

    def column(self, rows: Sequence[object], section: str, key: str) -> list[object]:
        """Take one key's value of each row of a list: far quicker than row by row, where there are very many.

        Raises
        ------
        StrataError
            If a row is no object, or lacks the key.
        """
        values = [row[key] for row in rows if isinstance(row, dict) and key in row]
        if len(values) == len(rows):
            return values
        return [row[key] for _, row in self.objects(rows, section, (key,))]

    def identifiers(self, rows: Sequence[object], section: str, key: str) -> list[str]:
        """Turn the ids of a column into text, as `identifier` does.

        Raises
        ------
        StrataError
            As of `column` and `identifier`.
        """
        values = self.column(rows, section, key)
        if set(map(type, values)) <= {int}:
            return list(map(str, values))
        return [self.identifier(f"at {section}[{index}]", key, value) for index, value in enumerate(values)]

    def texts(self, rows: Sequence[object], section: str, key: str) -> list[str]:
        """Take the values of a column as text, as `text` does.

        Raises
        ------
        StrataError
            As of `column` and `text`.
        """
        values = self.column(rows, section, key)
        if all(map(is_text, values)):
            return [str(value).strip() for value in values]
        return [self.text(f"at {section}[{index}]", key, value) for index, value in enumerate(values)]

    def identifier(self, where: str, key: str, value: object) -> str:
        """Turn an id into text; a number and the string that spells it are one id.

        Raises
        ------
        StrataError
            If it is neither an integer nor text, or blank.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip() and is_text(value):
            return value
        raise self.error(f"has {value!r:.80} as '{key}' {where}, neither an integer nor text")

    def text(self, where: str, key: str, value: object) -> str:
        """Take ``value`` as text, without outer blanks.

        Raises
        ------
        StrataError
            If it is something else, or text that UTF-8 cannot hold.
        """
        if not isinstance(value, str) or not is_text(value):
            raise self.error(f"has {value!r:.80} as '{key}' {where}, not text")
        return value.strip()


def is_text(value: object) -> bool:
    r"""Tell whether ``value`` is a string that UTF-8 can hold.

    JSON may spell half of a surrogate pair (``"\ud83d"``), and a file name may hold bytes of another encoding; either
    would end a run much later, when a table is written.
    """
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def name_few(values: Iterable[object], limit: int = 3) -> str:
    """List the first ``limit`` values for a message, and how many more there are.

    >>> name_few([7, 8, 9, 10])
    '7, 8, 9 and 1 more'
    """
    named = [str(value) for value in values]
    rest = f" and {len(named) - limit} more" if len(named) > limit else ""
    return ", ".join(named[:limit]) + rest
