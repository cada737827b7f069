"""Files made wrong at random, each kind in the ways of its format; the same for the same random numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save

Mutated = tuple[str, bytes | None]  # what was done, and the content after it; None: no file any more

DEEP = 100_000
HUGE = "9" * 4000
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.5, 10**30, -(10**30), 2**31, 2**63, 1e308, "", "x", "x" * 10_000, "\ud800"),
    *(
        "a\nb",
        "\x00",
        "../..",
        [],
        {},
        [[]],
        [None],
        {"a": {}},
        float("nan"),
        float("inf"),
        "@deep list@",
        "@deep object@",
        "@huge@",
    ),
)


def mutate(name: str, content: bytes, rng: random.Random) -> Mutated:
    """`content` of a file called `name`, wrong in one way (now and then in two)."""
    ways: list[Callable[[bytes, random.Random], Mutated]] = [_bytes]
    ways += [_tensors, _tensors, _header] if name.endswith(".safetensors") else [_json] * 4
    done, after = [], content
    for _ in range(1 if rng.random() < 0.9 else 2):
        try:
            what, new = rng.choice(ways)(after, rng)
        except Exception:
            if not done:
                raise
            break  # the second way cannot read what the first has left
        done.append(what)
        if new is None:
            return ", ".join(done), None
        after = new
    return ", ".join(done), after


def without_checksum(name: str, content: bytes) -> bytes:
    """The same file without its checksum, which would be all that is looked at once the content has changed."""
    if name.endswith(".safetensors"):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header.get("__metadata__", {}).pop("checksum", None)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]
    values = [json.loads(line) for line in content.splitlines()] if name.endswith(".jsonl") else [json.loads(content)]
    values[-1].pop("checksum", None)
    return "\n".join(map(json.dumps, values)).encode()


# --- bytes ------------------------------------------------------------------------------------------------------------


def _bytes(content: bytes, rng: random.Random) -> Mutated:
    way = rng.choice(("flip", "cut", "insert", "delete", "not UTF-8", "empty", "none", "twice"))
    at = rng.randrange(len(content) or 1)
    some = rng.randbytes(rng.choice((1, 8, 100)))
    after = {
        "flip": content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)] if content else []) + content[at + 1 :],
        "cut": content[:at],
        "insert": content[:at] + some + content[at:],
        "delete": content[:at] + content[at + len(some) :],
        "not UTF-8": content[:at] + b"\xff\xfe" + content[at:],
        "empty": b"",
        "none": None,
        "twice": content + content,
    }
    return f"{way} at byte {at}", after[way]


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(content: bytes, rng: random.Random) -> Mutated:
    """A change of the value of a JSON file, or of one line of a JSON-lines file."""
    lines = content.decode().splitlines()
    try:
        value, before, after = json.loads(content), [], []
    except ValueError:
        at = rng.randrange(len(lines))
        value, before, after = json.loads(lines[at]), lines[:at], lines[at + 1 :]
    what, changed = _changed(value, rng)
    return what, "\n".join([*before, changed, *after, ""]).encode()


def _changed(value: Any, rng: random.Random) -> tuple[str, str]:
    """What was done to a plain value, and its text."""
    places = [*_places(value)]
    path, key, holder = rng.choice(places)
    way = rng.choice(("drop", "set", "set", "set", "rename", "repeat", "more", "swap", "twice", "list"))
    where, strange = "/".join(map(str, [*path, key])), rng.choice(STRANGE)
    said = f"{way} {where}"
    if way == "drop":
        del holder[key]
    elif way == "set":
        holder[key], said = strange, f"{said} = {strange!r:.40}"
    elif way == "rename" and isinstance(holder, dict):
        holder[f"{key}2"] = holder.pop(key)
    elif way == "more" and isinstance(holder, dict):
        holder[rng.choice(("extra", "", "\ud800", "x" * 10_000))] = strange
    elif way == "swap":
        _, other_key, other = rng.choice(places)
        holder[key], other[other_key] = other[other_key], holder[key]
        return f"{said} with {other_key}", _text(value) if not _loops(value) else "[]"
    elif way == "twice" and isinstance(holder, dict):
        holder[key] = {"@twice@": [key, holder[key], strange]}
    elif way == "list":
        holder[key] = [holder[key]]
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    return said, _text(value)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any, Any]]:
    """Every entry of the objects and lists of a value: the way to it, its name, and what holds it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [place for key in keys for place in [(path, key, value), *_places(value[key], (*path, key))]]


def _loops(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def _text(value: Any) -> str:
    """JSON with what `json` would not write: deep nesting, a name that stands twice, a number of thousands of digits."""
    twice: list[tuple[str, str]] = []

    def marked(v: Any) -> Any:
        if isinstance(v, dict) and v.keys() == {"@twice@"}:
            name, mark = json.dumps(v["@twice@"][0]), f"@twice {len(twice)}@"
            one, other = map(_text, v["@twice@"][1:])
            twice.append((f'{name}: "{mark}"', f"{name}: {one}, {name}: {other}"))
            return mark
        if isinstance(v, dict):
            return {k: marked(each) for k, each in v.items()}
        return [marked(each) for each in v] if isinstance(v, list) else v

    text = json.dumps(marked(value))
    for mark, raw in twice:
        text = text.replace(mark, raw)
    text = text.replace('"@deep list@"', "[" * DEEP + "]" * DEEP).replace('"@huge@"', HUGE)
    return text.replace('"@deep object@"', '{"a":' * DEEP + "1" + "}" * DEEP)


# --- safetensors ------------------------------------------------------------------------------------------------------


def _header(content: bytes, rng: random.Random) -> Mutated:
    size = int.from_bytes(content[:8], "little")
    what, text = _changed(json.loads(content[8 : 8 + size]), rng)
    header = text.encode()
    return f"header: {what}", len(header).to_bytes(8, "little") + header + content[8 + size :]


def _tensors(content: bytes, rng: random.Random) -> Mutated:
    """Another whole safetensors file."""
    tensors = load(content)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    name = rng.choice(sorted(tensors))
    ways = ("drop", "rename", "shape", "shape", "dtype", "dtype", "fill", "fill", "entry", "metadata", "more", "swap")
    way = rng.choice(ways)
    said = f"{way} {name}"
    if way == "drop":
        del tensors[name]
    elif way == "rename":
        other = rng.choice((f"{name}.x", name.replace("0", "7"), "x", "embeddings.9", "method.x", "logits.a"))
        tensors[other] = tensors.pop(name)
    elif way == "shape":
        kind, change = rng.choice(sorted(_SHAPES.items()))
        tensors[name], said = change(tensors[name]), f"{said} {kind}"
    elif way == "dtype":
        dtype = rng.choice(_DTYPES)
        tensors[name], said = tensors[name].to(dtype), f"{said} {dtype}"
    elif way == "fill":
        value = rng.choice((0.0, 1.0, -1.0, 2.0, 6e4, float("nan"), float("inf")))
        tensors[name], said = torch.full_like(tensors[name].double(), value).to(tensors[name].dtype), f"{said} {value}"
    elif way == "entry" and tensors[name].numel():
        value = rng.choice((-1.0, 11.0, 6e4, float("nan"), float("-inf")))
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = torch.tensor(value).to(tensors[name].dtype)
        said = f"{said} {value}"
    elif way == "metadata":
        metadata = rng.choice(({}, {"split": "x"}, {"split": ""}, {"split": "test", "more": "x"}, {"position": "{}"}))
        said = f"metadata {metadata}"
    elif way == "more":
        tensors[rng.choice(("x", f"{name}.0", "relations.3", "embeddings.3"))] = torch.zeros(rng.choice(((), (2,), (2, 2))))
    elif way == "swap":
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
        said = f"{said} with {other}"
    return said, save({k: v.contiguous() for k, v in tensors.items()}, metadata)


_SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one row more": lambda t: torch.cat([t, t[:1]]) if t.ndim else t[None],
    "one row less": lambda t: t[1:] if t.ndim else t,
    "no row": lambda t: t[:0] if t.ndim else t,
    "one column less": lambda t: t[:, 1:] if t.ndim > 1 else t.flatten()[:1],
    "no column": lambda t: t[:, :0] if t.ndim > 1 else t.flatten()[:0],
    "flat": lambda t: t.flatten(),
    "one more dimension": lambda t: t[None],
    "turned": lambda t: t.T if t.ndim == 2 else t,
}
_DTYPES = (
    *(torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.complex64, torch.float8_e4m3fn, torch.uint16),
)
