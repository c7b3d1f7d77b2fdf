"""Traces of models that packages bring, kept from one command to the next: tracing is what a command waits for longest.

An entry has the program and what is no tensor of the module, and is a few hundred kB; the weights stay where they are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lrpfunc
from lrpfunc.compat import has_hooks
from lrpfunc.errors import FileError, LrpError
from lrpfunc.extras import extra
from lrpfunc.pictures.classifiers import Classifier
from lrpfunc.program import Program, check
from lrpfunc.storage import read, write

KIND = "trace"
KEPT = 64  # entries; the ones that were used last

Params = dict[str, Tensor]


def traced(classifier: Classifier, example: Tensor) -> tuple[Program, Params]:
    """A classifier's program and parameters, out of the cache if they were traced before.

    Only models whose code packages bring (`classifier.packages`) are kept: other code may have changed since. An entry
    that is damaged is made anew, and a cache that cannot be written to is done without.
    Errors: `TraceError`.
    """
    if not classifier.packages or _is_changed(classifier.model):
        return lrpfunc.functionalize(classifier.model, example)
    path = folder() / f"{_key(classifier, example)}.safetensors"
    own = _tensors_of(classifier.model)
    found = _found(path, own)
    if found is None:
        found = lrpfunc.functionalize(classifier.model, example)
        _keep(path, *found, own)
    return found


def folder() -> Path:
    """Where traces are kept: in the folder that LRPFUNC_CACHE names, or where the system keeps caches."""
    if given := os.environ.get("LRPFUNC_CACHE"):
        return Path(given) / "traces"
    directories = extra("platformdirs", "cli", "the cache of traces")
    return Path(directories.user_cache_dir("lrpfunc", appauthor=False)) / "traces"


def _key(classifier: Classifier, example: Tensor) -> str:
    """A digest of all that a trace depends on: code by its version, the module's structure, weights by content."""
    packages = ("torch", *classifier.packages)
    digest = hashlib.sha256(_sources())
    about = {
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "name": classifier.name,
        "module": re.sub(r" at 0x\w+", "", repr(classifier.model)),
        "settings": [[name, _settings(module)] for name, module in classifier.model.named_modules()],
        "input": [list(example.shape), str(example.dtype)],
    }
    digest.update(json.dumps(about).encode())
    for name, tensor in sorted(classifier.model.state_dict(keep_vars=True).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_changed(model: nn.Module) -> bool:
    """Whether somebody hung code of their own into a model, or trains it."""
    return any(module.training or has_hooks(module) for module in model.modules())


def _settings(module: nn.Module) -> list:
    """What a module was told, as far as it is plain: an eps, a flag, a stride."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str, tuple))}
    return sorted((name, repr(value)) for name, value in plain.items())


@functools.cache
def _sources() -> bytes:
    """The code of lrpfunc itself, which in a checkout changes under one version."""
    root = Path(lrpfunc.__file__).parent
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # sources that are run without an installation
        return getattr(lrpfunc, "__version__", "")


def _tensors_of(model: nn.Module) -> Params:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def _found(path: Path, own: Mapping[str, Tensor]) -> tuple[Program, Params] | None:
    """An entry, None if there is none or it does not fit."""

    def made(kind: str, content: Any) -> tuple[Program, Params]:
        program, names, others = content
        if kind != KIND or not isinstance(program, Program):
            raise FileError("it is no trace")
        check(program, who="the file")
        params = {name: others[name] if name in others else own[name] for name in names}
        program.flatten_params(params)
        return program, params

    try:
        found = read(path, made)
        os.utime(path)
    except (LrpError, OSError):
        return None
    return found


def _keep(path: Path, program: Program, params: Params, own: Mapping[str, Tensor]) -> None:
    others = {name: tensor for name, tensor in params.items() if not _is_own(tensor, own.get(name))}
    with contextlib.suppress(OSError, LrpError):  # a cache is no must
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, KIND, [program, list(params), others], others)
        entries = sorted(path.parent.glob("*.safetensors"), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries[KEPT:]:
            entry.unlink()


def _is_own(tensor: Tensor, own: Tensor | None) -> bool:
    return own is not None and tensor.shape == own.shape and tensor.data_ptr() == own.data_ptr()
