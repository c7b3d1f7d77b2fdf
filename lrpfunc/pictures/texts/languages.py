"""A language model out of a folder: nothing is downloaded, and no code that comes with it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrpfunc import text
from lrpfunc.errors import FileError, ModelError, near_misses
from lrpfunc.extras import extra
from lrpfunc.pictures.images import printable

CONFIG = "config.json"
# What tokenizers are kept in; tokenizer_config.json alone makes none.
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "tiktoken.model", "*.tiktoken",
)  # fmt: skip
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
AUTO = "auto"


class Written(NamedTuple):
    """Prompt and answer as ids (1, length), and how many are the prompt's."""

    ids: Tensor
    prompt_length: int

    @property
    def answer_length(self) -> int:
        return self.ids.shape[1] - self.prompt_length


class LanguageModel(NamedTuple):
    """A causal language model with its tokenizer. `notes`: what people should know of how it was read."""

    name: str
    model: nn.Module
    tokenizer: Any
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many tokens it knows."""
        return self.model.get_input_embeddings().num_embeddings  # type: ignore[operator]

    @property
    def longest(self) -> int | None:
        """How many tokens it was made for, None where that is not said."""
        found = getattr(self.model.config, "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    @property
    def ends(self) -> set[int]:
        """The tokens that end what it writes."""
        config = getattr(self.model, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        listed = found if isinstance(found, list | tuple) else [found, self.tokenizer.eos_token_id]
        return {token for token in listed if isinstance(token, int)}

    def written(self, prompt: str, answer: str) -> Written:
        """The tokens of a prompt and of what is written behind it, as it stands. Errors: `ModelError`."""
        for what, said in (("prompt", prompt), ("answer", answer)):
            if said != plain(said):
                raise ModelError(f"the {what} is no text: it has halves of characters (surrogates).")
        before = self._ids(prompt)
        if not before:
            raise ModelError("the prompt has no tokens: give some words.")
        both = self._ids(prompt + answer)
        if both[: len(before)] != before or len(both) <= len(before):  # a token that goes across, say
            both = before + self._ids(answer, special=False)
        if answer and len(both) == len(before):
            raise ModelError(f"the answer {answer!r} has no tokens: give some words.")
        if max(both) >= self.size:
            raise ModelError(
                f"the tokenizer of {self.name} gives the token {max(both)}, but the model has {self.size}: they do not "
                "belong together."
            )
        if self.longest and len(both) > self.longest:
            raise ModelError(
                f"prompt and answer are {len(both):,} tokens, but {self.name} reads {self.longest:,} "
                f"(max_position_embeddings in its {CONFIG}): give fewer words."
            )
        return Written(torch.tensor([both]), len(before))

    def words(self, ids: Sequence[int]) -> list[str]:
        """Tokens as people read them, or as <number> where the model has more than the tokenizer."""
        pieces = self.tokenizer.convert_ids_to_tokens(list(ids))
        return text.words([f"<{one}>" if piece is None else piece for one, piece in zip(ids, pieces, strict=True)])

    def _ids(self, written: str, special: bool = True) -> list[int]:
        """Without what a tokenizer puts behind a text, as if it ended there."""
        ids = list(self.tokenizer(written, add_special_tokens=special)["input_ids"])
        plain = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        ends = set(self.tokenizer.all_special_ids) - set(plain[-1:])
        while len(ids) > len(plain) and ids[-1] in ends:
            ids.pop()
        return ids


def plain(said: str) -> str:
    """A text without halves of characters, which no file can hold; JSON and arguments of commands may have them."""
    return said.encode("utf-8", "replace").decode("utf-8")


def load(folder: str, dtype: str = AUTO, device: torch.device | None = None) -> LanguageModel:
    """A causal language model of a Hugging Face folder: config.json, weights in safetensors, files of a tokenizer.

    Errors: `FileError` for a folder that is not there or lacks something, `ModelError` for what cannot be used,
    `MissingExtraError` without transformers.
    """
    if dtype not in (AUTO, *DTYPES):
        raise ModelError(f"the dtype '{dtype}' is none of {AUTO}, {', '.join(DTYPES)}.{near_misses(dtype, DTYPES)}")
    path = _folder(folder)
    config = _json(path / CONFIG)
    transformers = extra("transformers", "transformers", "reading a language model")
    with _quiet(transformers):
        _refuse_remote_code(transformers, path, config)
        _check_files(path)
        tokenizer = _tokenizer(transformers, path)
        made, notes = _model(transformers, path, config, dtype)
    made = made.eval().requires_grad_(False)
    return LanguageModel(path.resolve().name, made if device is None else made.to(device), tokenizer, notes)


# -- the folder -------------------------------------------------------------------------------------------------------


def _folder(folder: str) -> Path:
    path = Path(folder)
    if path.is_file():
        raise FileError(f"{path} is a file: --model takes the folder of a language model, with {CONFIG} in it.")
    if not path.is_dir():
        hint = f"hf download {folder} --local-dir FOLDER gets it from the hub" if _is_name(folder) else "see its name"
        raise FileError(f"there is no folder {folder}, and nothing is downloaded here: {hint}.")
    if not (path / CONFIG).is_file():
        raise FileError(f"{path} has no {CONFIG}: it is no folder of a language model, as save_pretrained writes it.")
    return path


def _is_name(folder: str) -> bool:
    """Whether it may be a name of the hub: owner/model."""
    return folder.count("/") == 1 and not folder.startswith((".", "/", "~"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} holds no object, but a {type(found).__name__}.")
    return found


def _refuse_remote_code(transformers: Any, path: Path, config: Mapping[str, Any]) -> None:
    """Errors: `ModelError` for a model that is made by code of its own, which transformers does not know."""
    kind = config.get("model_type")
    if "auto_map" in config and kind not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{path} wants to run code of its own (auto_map in {CONFIG}), which is not done: models that transformers "
            f"{transformers.__version__} itself has are explained, and '{kind}' is none of them."
        )


def _check_files(path: Path) -> None:
    """Errors: `FileError` for a folder without weights or without a tokenizer."""
    if not list(path.glob("*.safetensors")):
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in path.glob(pattern))
        only = f" There is {others[0]}, but such files may run code, or are of another program." if others else ""
        raise FileError(f"{path} has no weights in safetensors.{only} model.save_pretrained(folder) writes them.")
    if not any(list(path.glob(name)) for name in VOCABULARIES):
        raise FileError(
            f"{path} has no tokenizer, such as {VOCABULARIES[0]}: tokenizer.save_pretrained(folder) writes one, or "
            "copy the files from where the model is from."
        )


# -- what transformers makes of it ------------------------------------------------------------------------------------


def _tokenizer(transformers: Any, path: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its files hold
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the tokenizer of {path} wants to run code of its own (auto_map in tokenizer_config.json), which is "
                "not done."
            ) from error
        raise ModelError(f"the tokenizer of {path} cannot be read: {said(error)}") from error


def _model(transformers: Any, path: Path, config: Mapping[str, Any], dtype: str) -> tuple[nn.Module, tuple[str, ...]]:
    notes = []
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    wanted: Any = DTYPES.get(dtype, AUTO)
    if dtype == AUTO and stored == "float16":
        wanted = torch.float32
        notes.append("the weights are float16, which overflows, and are read as float32: --dtype bfloat16 takes half.")
    given = {"experts_implementation": "batched_mm"} if any("expert" in name for name in config) else {}
    try:
        made, report = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=wanted,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **given,
        )
    except Exception as error:  # whatever its files hold
        raise ModelError(f"{path} cannot be read as a causal language model: {said(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights in {path} lack {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which "
            "would be random: they are of another model than its config.json."
        )
    if left := sorted(report["unexpected_keys"]):
        notes.append(f"{len(left)} of the weights are of no use to the model, such as {left[0]}.")
    made.config.use_cache = False
    return made, tuple(notes)


def said(error: Exception) -> str:
    """What another package said, in a line."""
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
        return "its weights have other sizes than its config.json says."
    if str(error).startswith("Unrecognized configuration class"):
        return "its kind of model is none that writes word after word."
    words = printable(" ".join(str(error).split()))[:200].rstrip(".")
    return f"{type(error).__name__}: {words}."


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' warnings and bars, which say in a page what is said here in a line."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
