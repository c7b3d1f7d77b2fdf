"""The tensors in files of weights, by their whole names, however deep they lie: what may be chosen from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrpfunc.errors import FileError
from lrpfunc.pictures.weights import foreign
from lrpfunc.pictures.weights.pickles import Array, Aside, first_sentence, unpickled

DEEPEST = 16  # folds of containers that are looked into
WHOLE = "a model of class "
PICK = "#"  # file.pt#state_dict_ema
IN_FOLDERS = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, `path`, by their whole names: 'state_dict.model.conv.weight'.

    `nests`: the beginnings of names that are containers of the file, and no part of a parameter's name. `pick`: which
    of them the user wants, or nothing. `aside`: classes in the file of which nothing was made. `content`: what the file
    holds, in a word.
    """

    path: str
    tensors: Mapping[str, Tensor]
    nests: frozenset[str] = frozenset()
    pick: str = ""
    aside: tuple[str, ...] = ()
    content: str = "dict"


def is_file(weights: str) -> bool:
    """Whether weights are given by a file or folder, maybe with a pick behind, and not by a word."""
    return "." in weights or Path(_parted(weights)[0]).exists()


def read_state(weights: str) -> Checkpoint:
    """The tensors in a file or folder, `file.pt` or `file.pt#what`. Errors: `FileError`."""
    name, pick = _parted(weights)
    path = Path(name)
    if path.is_dir():
        path = _in_folder(path)
    elif not path.exists():
        raise FileError(f"there is no file '{name}' to take weights from.")
    elif not path.is_file():
        raise FileError(f"'{name}' is no file to take weights from.")
    content, aside = _content(path)
    tensors, nests = _flat(content)
    return Checkpoint(name, tensors, frozenset(nests), pick, aside, _word(content))


def _parted(weights: str) -> tuple[str, str]:
    """The file and the pick: a file may have that sign in its own name."""
    before, sign, pick = weights.rpartition(PICK)
    return (before, pick.replace("/", ".").strip(".")) if sign and not Path(weights).exists() else (weights, "")


def _content(path: Path) -> tuple[Any, tuple[str, ...]]:
    """What a file holds, and the classes in it of which nothing was made."""
    try:
        kind = foreign.kind(path)
        if kind == foreign.SAFETENSORS:
            import safetensors.torch

            return safetensors.torch.load_file(path), ()
        if kind == foreign.ARRAYS:
            with np.load(path, allow_pickle=False) as loaded:
                return {name: torch.from_numpy(loaded[name]) for name in loaded.files}, ()
        if kind == foreign.INDEX:
            return _shards(path), ()
        return unpickled(path)
    except FileError:
        raise
    # safetensors, pickle, zip and numpy have errors of their own for files that are broken
    except Exception as error:
        raise FileError(
            f"'{path}' holds no weights that can be loaded safely ({first_sentence(error)}). "
            "Write it by torch.save(model.state_dict(), path) or safetensors."
        ) from error


def _shards(index: Path) -> dict[str, Tensor]:
    """The parts of a large model, which a file lists. Errors: `FileError` if one is missing."""
    listed = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    found: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise FileError(f"'{index}' lists the part '{name}', which is not beside it.")
        found.update(_content(shard)[0])
    return found


def _in_folder(folder: Path) -> Path:
    """The file with the weights in a folder, as Hugging Face names it. Errors: `FileError`."""
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    if (folder / "saved_model.pb").exists():
        raise foreign.refused(folder, "a SavedModel of TensorFlow", foreign.PORT)
    if any(folder.glob("*.distcp")):
        raise foreign.refused(
            folder,
            "a distributed checkpoint",
            f"Make a file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch '{folder}' file.pt.",
        )
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    inside = f"Give a file in it: {', '.join(files[:4])}." if files else "Give a file."
    raise foreign.refused(folder, "a folder", inside)


# -- names ------------------------------------------------------------------------------------------------------------


def _flat(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors that have names, at any depth, by their whole names, and the names of the containers."""
    tensors: dict[str, Tensor] = {}
    nests: list[str] = []
    seen: set[int] = set()

    def walk(container: Any, name: str, depth: int) -> None:
        seen.add(id(container))  # what a file holds twice, or within itself, is looked into once
        for key, value in _items(container):
            whole = f"{name}.{key}" if name else key
            if isinstance(value, Tensor):
                tensors.setdefault(whole, value)
            elif depth < DEEPEST and id(value) not in seen:
                nests.append(whole)
                walk(value, whole, depth + 1)

    walk(content, "", 1)
    return tensors, nests


def _items(container: Any) -> Iterator[tuple[str, Any]]:
    """What a container holds by name: containers and tensors, of which those in lists have none."""
    if isinstance(container, (list, tuple)):
        yield from ((str(i), value) for i, value in enumerate(container) if isinstance(value, (Mapping, list, tuple)))
    elif isinstance(container, Mapping):
        for key, value in container.items():
            value = value.tensor() if isinstance(value, Array) else value
            if isinstance(key, (str, int)) and isinstance(value, (Tensor, Mapping, list, tuple)):
                yield str(key), value


def _word(content: Any) -> str:
    """What a file holds, for an error."""
    inside = list(content.values()) if isinstance(content, Mapping) else [content]
    models = [value for value in inside if isinstance(value, Aside) and "_modules" in (value.state or ())]
    if models:
        return f"{WHOLE}{models[0].name}"
    return "dict" if isinstance(content, Mapping) else type(content).__name__
