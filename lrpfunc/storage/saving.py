"""Files of programs: `.safetensors`, with what they hold as JSON in the header."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrpfunc.attribution import Prepared, as_prepared, planned
from lrpfunc.canonizers import Canonical, restored
from lrpfunc.errors import FileError, LrpError
from lrpfunc.program import Program, check, leaf_names
from lrpfunc.storage.decoding import Decoder
from lrpfunc.storage.encoding import Encoder

FORMAT = 1  # of what is written; a newer one than one's own cannot be read
KEY = "lrpfunc"

Saved = Program | tuple[Program, Any] | Canonical | Prepared


def save(path: str | os.PathLike, what: Saved) -> None:
    """Keep a program, with its parameters or canonical or prepared, in a file that holds no code.

    The file is a `.safetensors` with the parameters under their names; its header says which operators the program
    calls. A file that is there is replaced, at once and as a whole.

    Args:
        path: where to; `.safetensors` is the usual ending.
        what: `fmodel`, `(fmodel, params)`, a `Canonical` or a `Prepared`.

    Errors: `FileError` for anything else, and where the file cannot be written; `RuleError` for a prepared explanation
    under rules or stabilizers of one's own, which are code.

    >>> import lrpfunc, torch, tempfile
    >>> fmodel, params = lrpfunc.functionalize(torch.nn.Linear(3, 2), torch.ones(1, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lrpfunc.save(f"{folder}/model.safetensors", (fmodel, params))
    ...     again, same = lrpfunc.load(f"{folder}/model.safetensors")
    >>> torch.equal(again(same, torch.ones(1, 3)), fmodel(params, torch.ones(1, 3)))
    True
    """
    write(Path(path), *_parts(what))


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Any:
    """What `save` kept: the same kind of object, which computes the same.

    Args:
        path: the file.
        device: where its tensors go.

    Errors: `FileError` for a file that is missing, damaged, of another kind or of a newer format, and for operators
    that this torch does not have.

    >>> import lrpfunc
    >>> lrpfunc.load("nothing.safetensors")
    Traceback (most recent call last):
    ...
    lrpfunc.errors.FileError: there is no file nothing.safetensors.
    """
    return read(Path(path), _made, device)


# -- what is kept -----------------------------------------------------------------------------------------------------


def _parts(what: Any) -> tuple[str, Any, Mapping[str, Tensor]]:
    """The kind of what is saved, its parts, and the parameters by their names."""
    if isinstance(what, Program):
        return "program", what, {}
    if isinstance(what, Canonical):
        if not (isinstance(what.restore, partial) and what.restore.func is restored):
            raise FileError("save takes a Canonical with the `restore` that canonize gave it.")
        _, originals, names = what.restore.args
        named = {**{f"original.{name}": leaf for name, leaf in originals.items()}, **what.params}
        return "canonical", [what.fmodel, what.params, originals, names, what.report], named
    if isinstance(what, Prepared):
        plan = what.plan
        values = {name: plan.values[variable.name] for name, variable in plan.program.parameters.items()}
        backend = False if what.compiled is None else what.compiled.backend
        settings = [backend, plan.ranges, plan.assigned, plan.hoists, plan.is_strict]
        return "prepared", [plan.program, list(values.values()), *settings], values
    if isinstance(what, tuple) and len(what) == 2 and isinstance(what[0], Program):
        program, params = what
        leaves = program.flatten_params(params)
        return "traced", [program, params], dict(zip(leaf_names(params), leaves, strict=True))
    raise FileError(
        "save takes a program, (fmodel, params), what canonize returned or what prepare returned, "
        f"but got {type(what).__name__}."
    )


def _made(kind: str, content: Any) -> Any:
    """The object of its parts. Errors: `FileError` for parts that do not fit one another."""
    program = content if kind == "program" else content[0]
    if not isinstance(program, Program):
        raise FileError("it holds no program")
    check(program, who="the file")
    if kind == "program":
        return program
    if kind == "traced":
        program.flatten_params(content[1])
        return program, content[1]
    if kind == "canonical":
        _, params, originals, names, report = content
        program.flatten_params(params)
        return Canonical(program, params, partial(restored, program, originals, names), report)
    if kind == "prepared":
        _, leaves, backend, *settings = content
        return as_prepared(planned(program, program.bind_leaves(leaves), *settings), backend)
    raise FileError(f"nothing is known of the kind '{kind}'")


# -- the file ---------------------------------------------------------------------------------------------------------


def write(path: Path, kind: str, content: Any, names: Mapping[str, Tensor]) -> None:
    """Write a file. `names`: what tensors of the content are called in it. Errors: as `save`."""
    from lrpfunc import __version__

    encoder = Encoder({id(leaf): name for name, leaf in names.items()})
    header = {
        "format": FORMAT,
        "lrpfunc": __version__,
        "torch": torch.__version__,
        "kind": kind,
        "content": encoder.encode(content),
        "variables": encoder.variables,
    }
    _write(path, encoder.tensors, {KEY: json.dumps(header, allow_nan=False)})


def read(path: Path, made: Callable[[str, Any], Any], device: str | torch.device = "cpu") -> Any:
    """What `made` makes of the kind and the content of a file. Errors: as `load`."""
    header, tensors = _read(path, device)
    try:
        if header["format"] > FORMAT:
            raise FileError(f"its format is {header['format']}, and this lrpfunc reads up to {FORMAT}: update it")
        decoder = Decoder(tensors, header["variables"])
        return made(header["kind"], decoder.decode(header["content"]))
    except (LrpError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error) if isinstance(error, LrpError) else "it is damaged"
        by = f"lrpfunc {header.get('lrpfunc')} and torch {header.get('torch')}"
        raise FileError(f"{path} (saved by {by}) cannot be loaded: {reason.rstrip('.')}.") from error


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    import safetensors.torch

    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # with the rights that new files have
        safetensors.torch.save_file(dict(tensors), new, metadata)
        os.replace(new, path)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise FileError(f"{path} cannot be written: {error}.") from error
    finally:
        new.unlink(missing_ok=True)


def _read(path: Path, device: str | torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors. Errors: `FileError`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileError(f"{path} is a folder, and no file." if path.is_dir() else f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            # Clones, as what lies in the file's memory is not aligned, on which kernels' speed and rounding depend.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, as it is no mapping
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} is no file of lrpfunc.save, or a damaged one ({error}).") from error
    except (RuntimeError, AssertionError) as error:  # as torch says that there is no such device
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path} cannot be loaded to the device '{device}' ({first}).") from error
    if KEY not in metadata:
        raise FileError(f"{path} holds tensors, but no program: lrpfunc.save did not write it.")
    try:
        header = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        header = None
    if not (isinstance(header, dict) and isinstance(header.get("format"), int)):
        raise FileError(f"{path} is damaged: its header cannot be read.")
    return header, tensors
