"""Files of prompts explained in blocks: equal to `attribute`, whoever does which block, and whatever stops a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

import lrpfunc
from lrpfunc import cli, composites, text
from lrpfunc.errors import FileError, InputError, MissingExtraError, ModelError
from lrpfunc.pictures import distributed, texts
from lrpfunc.pictures.distributed import ranks, worker
from lrpfunc.pictures.texts import answers, merging, prompts, report
from lrpfunc.pictures.texts.files import COLUMNS, TextRun
from tests.test_cli import COMMAND, complaint, fine, lrp
from tests.test_texts import original, saved, trained_tokenizer  # noqa: F401

transformers = pytest.importorskip("transformers")
arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

# Of several lengths, some alike; with an answer and without.
GIVEN = [
    {"id": "first", "prompt": "The red key is", "answer": " red. The"},
    {"id": "second", "prompt": "The blue key is blue. The"},
    {"id": 3, "prompt": "The blue key is", "answer": " red. The"},
    {"id": "fourth", "prompt": "The", "answer": " red key is red. The red key"},
    {"id": "fifth", "prompt": "The blue key is blue. The"},
    {"prompt": "key\nkey", "answer": None},
    {"id": "seventh", "prompt": "  red", "answer": "é <b>&\u202e"},
]
BLOCK, BATCH = 3, 4


def lines(path, entries):
    path.write_text("".join(f"{json.dumps(each)}\n" for each in entries))
    return path


@pytest.fixture
def source(tmp_path):
    return lines(tmp_path / "prompts.jsonl", GIVEN)


def task(source, out, model, **options):
    return distributed.TextTask(source, out, str(model), **{"batch": BATCH, "block": BLOCK} | options)


def by_ranks(the_task, world=1):
    return worker.together(the_task.folder, [ranks.run(the_task, ranks.Place(rank, world)) for rank in range(world)])


def rows_of(folder):
    return parquet.read_table(folder).to_pylist()  # as anybody reads it


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- what is explained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", ["attn_lrp", "cp_lrp"])
def test_every_row_is_what_attribute_gives(source, original, tmp_path, composite):  # noqa: F811
    by_ranks(task(source, tmp_path / "out", original, composite=composite, dtype="float64", chunk=2))
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float64, use_cache=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(original)
    found = rows_of(tmp_path / "out")
    assert [row["index"] for row in found] == list(range(len(GIVEN)))
    assert [row["id"] for row in found] == ["first", "second", "3", "fourth", "fifth", "prompts.jsonl#5", "seventh"]
    for row, given in zip(found, GIVEN, strict=True):
        written = tokenizer(given["prompt"])["input_ids"]
        start = len(written)
        ids = torch.tensor([tokenizer(given["prompt"] + (given.get("answer") or ""))["input_ids"]])
        with torch.no_grad():
            if not given.get("answer"):
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
            shares = model(ids).logits[0].softmax(-1)
        fmodel, params = lrpfunc.functionalize(model, ids)
        rules = getattr(composites, composite)()
        positions = range(start, ids.shape[1])
        expected = torch.stack(
            [lrpfunc.attribute(fmodel, params, ids, rules, text.token(int(ids[0, p]), p - 1))[0] for p in positions]
        )
        assert (row["ids"], row["prompt_length"]) == (ids[0].tolist(), start)
        np.testing.assert_allclose(np.array(row["matrix"]), expected.numpy(), rtol=2e-6, atol=1e-9)
        np.testing.assert_allclose(row["relevance"], expected.sum(0).numpy(), rtol=2e-6, atol=1e-9)
        logits = [float(model(ids).logits[0, p - 1, ids[0, p]]) for p in positions]
        np.testing.assert_allclose(row["logits"], logits, rtol=1e-6)
        np.testing.assert_allclose(
            row["probabilities"], [float(shares[p - 1, ids[0, p]]) for p in positions], rtol=1e-6
        )
        assert row["is_given"] == bool(given.get("answer"))
        assert row["error"] is None
        if row["is_given"]:
            assert (row["prompt"], row["answer"]) == (given["prompt"], given["answer"])
        assert "".join(row["tokens"][start:]) == (
            row["answer"] if given["id" if "id" in given else "prompt"] != "seventh" else "".join(row["tokens"][start:])
        )


def test_another_word_may_be_what_answers_are_compared_with(source, original, tmp_path):  # noqa: F811
    by_ranks(task(source, tmp_path / "plain", original, dtype="float64"))
    by_ranks(task(source, tmp_path / "out", original, other=" blue", dtype="float64"))
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float64).eval()
    (blue,) = transformers.AutoTokenizer.from_pretrained(original)(" blue")["input_ids"]
    for row, plain in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "plain"), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row["ids"]])).logits[0, row["prompt_length"] - 1 : -1, blue]
        np.testing.assert_allclose(row["logits"], np.array(plain["logits"]) - logits.numpy(), rtol=1e-4, atol=1e-6)


def test_prompts_of_one_length_are_explained_at_once(source, original, tmp_path, monkeypatch):  # noqa: F811
    sizes, explain = [], answers.TextExplainer.explain

    def counted(self, given, *more):
        sizes.append(len(given))
        return explain(self, given, *more)

    monkeypatch.setattr(answers.TextExplainer, "explain", counted)
    by_ranks(task(source, tmp_path / "together", original, block=100, batch=100))
    assert sorted(sizes[1:]) == [1, 1, 1, 2, 2]  # the first is the trial
    by_ranks(task(source, tmp_path / "alone", original, batch=1))
    for one, other in zip(rows_of(tmp_path / "together"), rows_of(tmp_path / "alone"), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name in ("relevance", "matrix", "logits", "probabilities"):
                np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-6, err_msg=name)
            else:
                assert value == other[name]


def test_a_model_of_single_lengths_is_traced_for_each(source, original, tmp_path, monkeypatch):  # noqa: F811
    by_ranks(task(source, tmp_path / "open", original))
    lengths, functionalize = [], answers.functionalize

    def fixed(model, ids):
        lengths.append(ids.shape[1])
        return functionalize(model, ids)

    takes = answers._takes
    monkeypatch.setattr(answers, "functionalize", fixed)
    monkeypatch.setattr(
        answers, "_takes", lambda fmodel, params, ids: ids.shape[1] in lengths[1:] and takes(fmodel, params, ids)
    )
    monkeypatch.setattr(answers, "KEPT_LENGTHS", 2)
    by_ranks(task(source, tmp_path / "fixed", original))
    wanted = Counter(len(row["ids"]) for row in rows_of(tmp_path / "fixed"))
    assert set(wanted) < set(lengths)
    for one, other in zip(rows_of(tmp_path / "fixed"), rows_of(tmp_path / "open"), strict=True):
        np.testing.assert_allclose(np.array(one["matrix"]), np.array(other["matrix"]), rtol=1e-4, atol=1e-6)
