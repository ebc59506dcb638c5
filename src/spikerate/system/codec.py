"""Values as JSON and back: frozen dataclasses of ours by name, and the user's own code by the path that it has."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

OPTIONS = {
    "NetworkFactory": "--network",
    "NeuronSettings": "--neuron",
    "Surrogate": "--surrogate",
    "Rule": "--rule",
    "Loss": "--loss",
    "OptimizerFactory": "--optim",
    "Schedule": "--schedule",
    "DataReader": "--reader",
}
"""What a part inherits from -> the option of the command line that names one of the user's own."""
_TYPES_SHOWN = ("rule", "loss", "neuron", "surrogate", "optim", "schedule")
"""Fields whose kind a person chooses."""


def added(default: Any) -> Any:
    """The default of a field that files of earlier versions lack; it means what those versions did."""
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class Own:
    """The user's own code that may stand for what a file names.

    Attributes:
        code: path, "package.module:name" -> class or function: what the user has named in this command, or has passed.
        shown: whether what is not among it is shown by its path and fields, and never run; else it is refused.
    """

    code: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = False

    @classmethod
    def of(cls, *values: Any) -> Own:
        """The classes and functions of these values, and of all dataclasses in their fields."""
        found = [part for value in values for part in parts_of(value)]
        codes = [part if isinstance(part, type | types.FunctionType) else type(part) for part in found]
        return cls({path: code for code in codes if ":" in (path := path_of(code))})


@dataclass(frozen=True)
class Unnamed:
    """Stands for a value of the user's own that is only shown."""

    path: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


def named_again(value: Any) -> str:
    """The options that name the user's own code in a value, each after a space; "" where there is none."""
    named = []
    for part in parts_of(value):
        if ":" in (path := path_of(part)):
            kinds = (part if isinstance(part, type) else type(part)).__mro__
            option = next((OPTIONS[kind.__name__] for kind in kinds if kind.__name__ in OPTIONS), "--network")
            named.append(f" {option} {path}")
    return "".join(named)


def path_of(value: Any) -> str:
    """The name of a class of ours; of another, or of a function, its path: "package.module:name"; of a value its class's."""
    if isinstance(value, Unnamed):
        return value.path
    code: Any = value if isinstance(value, type | types.FunctionType) else type(value)
    ours = isinstance(code, type) and code.__module__.partition(".")[0] == "spikerate"
    return code.__name__ if ours else f"{code.__module__}:{code.__qualname__}"


def encode(value: Any) -> Any:
    """A configuration as JSON types; a dataclass says its type, and a function or class is its path."""
    if isinstance(value, Unnamed):
        return {"type": value.path, **value.fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": path_of(value), **fields}
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    if isinstance(value, type | types.FunctionType):
        return path_of(value)
    return str(value) if isinstance(value, Path) else value


def flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """What `encode` gives, or another record, as rows of dotted names; of the types, those that a person chooses."""
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        elif key != "type" or prefix.rstrip(".").rpartition(".")[2] in _TYPES_SHOWN or ":" in str(value):
            rows.append((prefix.rstrip(".") if key == "type" else prefix + key, value))
    return rows


def decode(kind: Any, value: Any, where: str = "run", own: Own = Own()) -> Any:
    """The inverse of `encode` for the type `kind`, for files from strangers: nothing is ever imported.

    A field that was `added` since the file was written has its default. An abstract class stands for those of ours that
    inherit from it, and for `own` ones.

    Raises:
        ValueError: a field is unknown or missing, or a value has the wrong type or range, or is the user's own code that
            is not among `own`; the sentence says where.
    """
    if typing.get_origin(kind) is Annotated:
        return decode(typing.get_args(kind)[0], value, where, own)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _decode_union(typing.get_args(kind), value, where, own)
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError(f"{where} is {value!r}: give one of {', '.join(map(repr, typing.get_args(kind)))}")
    if inspect.isabstract(kind) or _is_protocol(kind):
        return _decode_part(kind, value, where, own)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where, own)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        kinds = typing.get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(decode(k, v, where, own) for k, v in zip(kinds, value, strict=True))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r}: give a value of type {getattr(kind, '__name__', kind)}")


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str, own: Own) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(k for k in kinds if k is not type(None))
    if isinstance(value, dict):
        named = [k for k in kinds if dataclasses.is_dataclass(k) and typing.cast(type, k).__name__ == value.get("type")]
        if named:
            return decode(named[0], value, where, own)
        if len(kinds) > 1:
            names = ", ".join(getattr(k, "__name__", str(k)) for k in kinds)
            raise ValueError(f"{where} is of type {value.get('type')!r}: give one of {names}")
    return decode(kinds[0], value, where, own)


def _decode_part(kind: Any, value: Any, where: str, own: Own) -> Any:
    """A value of a kind that the user may have made."""
    named = value.get("type") if isinstance(value, dict) else value
    path = named if isinstance(named, str) else ""
    if ":" not in path:
        ours = ours_of(kind)
        if not (ours and isinstance(value, dict)):
            raise ValueError(f"{where} is {str(value)[:60]!r}: give a {kind.__name__}")
        return _decode_union(ours, value, where, own)
    fields = {name: v for name, v in value.items() if name != "type"} if isinstance(value, dict) else {}
    if path in own.code:
        code = own.code[path]
        found = _decode_dataclass(code, value, where, own) if isinstance(value, dict) else code
        if not (_is_protocol(kind) or isinstance(found, kind)):
            raise ValueError(f"{where} is {path}, which does not inherit from {path_of(kind)}")
        return found
    if own.shown:
        (stands,) = (c for c in _subclasses(kind) if issubclass(c, Unnamed)) if not _is_protocol(kind) else (Unnamed,)
        return stands(path=path, fields=fields)
    option = OPTIONS.get(kind.__name__, "--" + where.split(".")[1])
    raise ValueError(
        f"{where} is the user's own code, {path}, which is never imported from a file: name it again, {option} {path}"
    )


def _decode_dataclass(kind: Any, value: Any, where: str, own: Own) -> Any:
    if not isinstance(value, dict) or value.get("type") != path_of(kind):
        raise ValueError(f"{where} is {str(value)[:60]!r}: give the fields of a {kind.__name__}")
    of_all = typing.get_type_hints(kind, include_extras=True)
    hints = {one.name: of_all[one.name] for one in dataclasses.fields(kind)}
    given = {name: v for name, v in value.items() if name != "type"}
    for name in given:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            raise ValueError(f"{where} has the unknown field {name!r}" + (f": did you mean {near[0]}?" if near else ""))
    missing = [one.name for one in dataclasses.fields(kind) if one.name not in given and "added" not in one.metadata]
    if missing:
        raise ValueError(f"{where} has no field {missing[0]!r}: it was written by another version of the code")
    return kind(**{name: decode(hints[name], v, f"{where}.{name}", own) for name, v in given.items()})


def ours_of(kind: Any) -> tuple[Any, ...]:
    """The dataclasses of ours that inherit from an abstract class."""
    ours = [c for c in _subclasses(kind) if ":" not in path_of(c) and not issubclass(c, Unnamed)]
    return tuple(c for c in ours if dataclasses.is_dataclass(c) and not inspect.isabstract(c))


def _is_protocol(kind: Any) -> bool:
    return isinstance(kind, type) and Protocol in kind.__mro__


def _subclasses(kind: Any) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


def parts_of(value: Any) -> Iterator[Any]:
    """A class, function or dataclass, and all that are in the fields of it."""
    if isinstance(value, type | types.FunctionType):
        yield value
    elif dataclasses.is_dataclass(value):
        yield value
        for one in dataclasses.fields(value):
            yield from parts_of(getattr(value, one.name))
