"""Files of prompts explained in blocks: equal to `attribute`, whoever does which block, and whatever stops a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import lrpfunc
from lrpfunc import cli, composites, extras, text
from lrpfunc.errors import FileError, InputError, MissingExtraError, ModelError
from lrpfunc.pictures import distributed
from lrpfunc.pictures.distributed import ranks, worker
from lrpfunc.pictures.progress import ProgressBar
from lrpfunc.pictures.texts import answers, files, merging, prompts, report
from lrpfunc.pictures.texts.files import TextRun
from tests.test_cli import complaint, fine, lrp
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
            logits = model(ids).logits[0]
        fmodel, params = lrpfunc.functionalize(model, ids)
        rules = getattr(composites, composite)()
        positions = range(start, ids.shape[1])
        expected = torch.stack(
            [lrpfunc.attribute(fmodel, params, ids, rules, text.token(int(ids[0, p]), p - 1))[0] for p in positions]
        )
        assert (row["ids"], row["prompt_length"]) == (ids[0].tolist(), start)
        np.testing.assert_allclose(np.array(row["matrix"]), expected.numpy(), rtol=2e-6, atol=1e-9)
        np.testing.assert_allclose(row["relevance"], expected.sum(0).numpy(), rtol=2e-6, atol=1e-9)
        expected = [float(logits[p - 1, ids[0, p]]) for p in positions]
        np.testing.assert_allclose(row["logits"], expected, rtol=1e-6)
        expected = [float(logits[p - 1].softmax(-1)[ids[0, p]]) for p in positions]
        np.testing.assert_allclose(row["probabilities"], expected, rtol=1e-6)
        assert row["is_given"] == bool(given.get("answer"))
        assert row["error"] is None
        tokens, answer = row["tokens"], given.get("answer")
        assert row["prompt"] == given["prompt"]
        assert row["answer"] == (answer or "".join(tokens[start:]))
        assert len(tokens) == len(row["ids"])
        if given["prompt"].isascii() and given["prompt"].isprintable():
            assert "".join(tokens[:start]) == given["prompt"]


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

    def counted(self, given):
        sizes.append(len(given))
        return explain(self, given)

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


def test_where_no_answer_is_given_the_model_writes_it(tmp_path):
    """Until it ends, so that answers to prompts of one length may be of several."""
    model = saved(tmp_path / "tiny", trained_tokenizer(), dtype=torch.float64)
    colors = ["red", "blue", "red key", "is", "The", "red"]
    source = lines(tmp_path / "p.jsonl", [{"prompt": f"The {color} key"} for color in colors])
    by_ranks(task(source, tmp_path / "first", model, words=4, batch=10, block=10))
    plain = rows_of(tmp_path / "first")
    assert all(len(row["matrix"]) == 4 and not row["is_given"] for row in plain)
    end = plain[0]["ids"][-2]
    transformers.GenerationConfig(eos_token_id=[end]).save_pretrained(model)
    by_ranks(task(source, tmp_path / "ends", model, words=4, batch=10, block=10))
    found = rows_of(tmp_path / "ends")
    for row, whole in zip(found, plain, strict=True):
        start, ids = row["prompt_length"], whole["ids"]
        answer = ids[start:]
        length = start + (max(answer.index(end), 1) if end in answer else 4)
        assert row["ids"] == ids[:length]
        assert row["answer"] == "".join(row["tokens"][start:])
        expected = np.array(whole["matrix"])[: length - start, :length]
        np.testing.assert_allclose(np.array(row["matrix"]), expected, rtol=1e-5, atol=1e-8)
    assert len({len(row["ids"]) - row["prompt_length"] for row in found}) > 1


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
    assert set(wanted) == set(lengths[1:])
    for one, other in zip(rows_of(tmp_path / "fixed"), rows_of(tmp_path / "open"), strict=True):
        np.testing.assert_allclose(np.array(one["matrix"]), np.array(other["matrix"]), rtol=1e-4, atol=1e-6)


# -- whoever does which block -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(original, tmp_path_factory):  # noqa: F811
    """The folder of a run in one process."""
    place = tmp_path_factory.mktemp("whole")
    outcome = by_ranks(task(lines(place / "prompts.jsonl", GIVEN), place / "out", original))
    assert (outcome.rows, outcome.failures, outcome.written, outcome.was_finished) == (7, [], 7, False)
    return place / "out"


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_makes_the_same_files(whole, original, world):  # noqa: F811
    """To the byte: the folder's name is not in them, the source's is."""
    out = whole.parent / f"by {world}"
    by_ranks(task(whole.parent / "prompts.jsonl", out, original), world)
    assert sorted(contents_of(out)) == ["_run.json", *(f"block-{n:06}.parquet" for n in (1, 2, 3))]
    assert contents_of(out) == contents_of(whole)


def test_what_is_whole_is_not_done_again(whole, original):  # noqa: F811
    out = shutil.copytree(whole, whole.parent / "again")
    (out / "block-000002.parquet").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    outcome = by_ranks(task(whole.parent / "prompts.jsonl", out, original), 2)
    assert (outcome.rows, outcome.written, outcome.was_finished) == (7, 3, False)
    assert contents_of(out) == contents_of(whole)
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    assert by_ranks(task(whole.parent / "prompts.jsonl", out, original)).was_finished


def test_a_killed_process_leaves_whole_files(whole, original):  # noqa: F811
    """It dies in the midst of the second block, as if the system had killed it."""
    out, source = whole.parent / "killed", whole.parent / "prompts.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from lrpfunc.pictures import distributed\n"
        "from lrpfunc.pictures.texts import files\n"
        "def killed(rows, write=files._table, left=[1]):\n"
        "    left[0] -= 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if left[0] < 0 else None\n"
        "    return write(rows)\n"
        "files._table = killed\n"
        f"task = distributed.TextTask(*map(Path, sys.argv[1:3]), sys.argv[3], batch={BATCH}, block={BLOCK})\n"
        "distributed.ranks.run(task)"
    )
    ended = subprocess.run([sys.executable, "-c", code, source, out, original], capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in sorted(out.glob("[!.]*"))] == ["_run.json", "block-000001.parquet"]
    assert rows_of(out) == rows_of(whole)[:BLOCK]  # what was on its way is hidden from readers
    by_ranks(task(source, out, original))
    assert {name: data for name, data in contents_of(out).items() if name[0] != "."} == contents_of(whole)


def test_a_process_that_is_thought_to_be_dead_may_be_faster(whole, original, monkeypatch):  # noqa: F811
    out = whole.parent / "faster"
    one = worker.Worker(task(whole.parent / "prompts.jsonl", out, original))
    table = files._table

    def overtaken(rows):
        if not (out / "block-000001.parquet").exists():
            shutil.copy(whole / "block-000001.parquet", out)
        return table(rows)

    monkeypatch.setattr(files, "_table", overtaken)
    assert one.do(1).was_finished
    assert sorted(contents_of(out)) == ["_run.json", "block-000001.parquet"]


def test_progress_counts_prompts(whole, original):  # noqa: F811
    said = []
    ranks.run(
        task(whole.parent / "prompts.jsonl", whole.parent / "told", original, batch=2),
        progress=lambda *counts: said.append(counts),
    )
    assert said == [(2, 7, 0), (3, 7, 0), (5, 7, 0), (6, 7, 0), (7, 7, 0)]


# -- files of prompts -------------------------------------------------------------------------------------------------


def without_places(rows):
    return [{name: value for name, value in row.items() if name not in ("id", "index")} for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow file", "folder", "other names", "strings"])
def test_prompts_come_in_many_files(whole, original, tmp_path, kind):  # noqa: F811
    given = [{"prompt": each["prompt"], "answer": each.get("answer")} for each in GIVEN]
    source = tmp_path / "prompts"
    table = arrow.Table.from_pylist(given)
    if kind == "parquet":
        source = source.with_suffix(".parquet")
        parquet.write_table(table, source, row_group_size=2)
    elif kind.startswith("arrow"):
        source = source.with_suffix(".arrow")
        made = arrow.ipc.new_file if kind == "arrow file" else arrow.ipc.new_stream
        with made(str(source), table.schema) as writer:
            writer.write_table(table)
    elif kind == "folder":
        source.mkdir()
        lines(source / "b.jsonl", given[3:])
        lines(source / "a.jsonl", given[:3])
        (source / "README.md").write_text("about them")
    elif kind == "other names":
        source = lines(tmp_path / "p.ndjson", [{"completion": e["answer"], "text": e["prompt"]} for e in given])
    else:
        source = lines(tmp_path / "p.jsonl", [each["prompt"] for each in given if not each["answer"]])
    by_ranks(task(source, tmp_path / "out", original))
    found, expected = rows_of(tmp_path / "out"), rows_of(whole)
    if kind == "strings":
        expected = [row for row in expected if not row["is_given"]]
    for one, other in zip(without_places(found), without_places(expected), strict=True):
        for name, value in one.items():
            if name in ("relevance", "matrix", "logits", "probabilities"):
                np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-6)
            else:
                assert value == other[name]
    if kind == "folder":
        assert [row["id"] for row in found] == [f"a.jsonl#{n}" for n in range(3)] + [f"b.jsonl#{n}" for n in range(4)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_prompts_may_lie_at_a_url(whole, original, tmp_path, kind):  # noqa: F811
    memory = pytest.importorskip("fsspec").filesystem("memory")
    source = tmp_path / "prompts" / f"prompts.{'parquet' if kind == 'parquet' else 'jsonl'}"
    source.parent.mkdir()
    if kind == "parquet":
        parquet.write_table(arrow.Table.from_pylist([{**each, "id": str(each.get("id"))} for each in GIVEN]), source)
    else:
        lines(source, GIVEN)
    memory.put(str(source.parent), "/bucket/prompts", recursive=True)
    url = "memory://bucket/prompts" + ("" if kind == "folder" else f"/{source.name}")
    by_ranks(task(url, tmp_path / "out", original))
    by_ranks(task(source.parent if kind == "folder" else source, tmp_path / "here", original))
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "here")
    memory.rm("/bucket", recursive=True)
    with pytest.raises(FileError, match=rf"^there is no file {url}\.$"):
        prompts.open_prompts(url)


def test_what_only_some_lines_or_files_have_is_read_all_the_same(tmp_path):
    """Fields are looked for line by line, so that an answer that comes late is not passed over."""
    expected = [("The", "", "a#0"), ("The", " red", "7"), ("Is it?", " no", "b#0")]
    late = [{"prompt": "The"}] * 200 + [{"id": 7, "prompt": "The", "answer": " red", "text": "x"}]
    found = prompts.open_prompts(lines(tmp_path / "late.jsonl", [*late, {"prompt": None, "text": "Is it?"}]))
    assert (found.read(200), found.read(201)[:2]) == (("The", " red", "7"), ("Is it?", ""))
    (tmp_path / "tables").mkdir()
    for name, table in (
        ("a", {"prompt": ["The"]}),
        ("b", {"text": ["Is it?"], "answer": arrow.array([" no"]).dictionary_encode()}),
        ("c", {"id": [7], "answer": arrow.array([" red"], arrow.large_string()), "prompt": ["The"]}),
    ):
        parquet.write_table(arrow.table(table), tmp_path / "tables" / f"{name}.parquet")
    (tmp_path / "tables" / "._a.parquet").write_bytes(b"of a Mac")
    found = prompts.open_prompts(tmp_path / "tables")
    read = [found.read(index) for index in range(len(found))]
    assert sorted(read) == sorted((p, a, n.replace("#", ".parquet#")) for p, a, n in expected)


def test_each_line_of_a_text_is_a_prompt(original, tmp_path):  # noqa: F811
    (tmp_path / "p.txt").write_bytes("\ufeffThe key\r\n\r\n  \n The blue \nred".encode())
    found = prompts.open_prompts(tmp_path / "p.txt")
    assert [found.read(index) for index in range(len(found))] == [
        ("The key", "", "p.txt#0"),
        (" The blue ", "", "p.txt#1"),
        ("red", "", "p.txt#2"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.csv",
            b"prompt\nThe",
            r"p\.csv is no file of prompts, which end in \.jsonl, \.ndjson, \.txt, \.parquet or \.arrow\.$",
        ),
        ("p.jsonl", b"\n \n", r"^there are no prompts in .*p\.jsonl\.$"),
        (
            "p.jsonl",
            b'{"words": "The"}\n',
            r"p\.jsonl needs prompts in a field prompt or text, but has 'words'\.$",
        ),
        ("p.jsonl", b"{}\n", r"or text, but has none\.$"),
        (
            "p.jsonl",
            b'[{"prompt": "The"}]',
            r"p\.jsonl needs an object in each line, but the first is no object with a 'prompt', but a list\.$",
        ),
        (
            "p.jsonl",
            b'{\n"prompt": "The"\n}',
            r"in each line, but the first is no JSON \(Expecting property name .*\)\.$",
        ),
        ("p.jsonl", '{"prompt": "The"}\n'.encode("utf-16"), r"the first is no text in UTF-8 \(.* at byte 0\)\.$"),
        ("p.parquet", b"no table", r"p\.parquet cannot be read: it is damaged, or something else \("),
    ],
)
def test_files_without_prompts_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message):
        prompts.open_prompts(tmp_path / name)


def test_places_without_prompts_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"^there is no file .*absent\.jsonl\.$"):
        prompts.open_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(FileError, match=r"^there are no prompts in .*: they are in files \.jsonl, "):
        prompts.open_prompts(tmp_path)
    lines(tmp_path / "p.jsonl", GIVEN)
    (tmp_path / "p.txt").write_text("The")
    with pytest.raises(FileError, match=r" holds \.jsonl and \.txt files: give the folder of one kind, or one file\.$"):
        prompts.open_prompts(tmp_path)


def test_columns_of_one_name_are_refused(tmp_path):
    table = arrow.Table.from_arrays([arrow.array(["The"])] * 2, names=["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(FileError, match=r"p\.parquet has several columns 'prompt': give each a name of its own\.$"):
        prompts.open_prompts(tmp_path / "p.parquet")


# -- prompts that cannot be explained ---------------------------------------------------------------------------------

BAD = [
    (b'{"prompt": "The key is"}', None),
    (b'{"prompt": "The', "is no JSON (Unterminated string starting at: line 1 column 12 (char 11))"),
    (b'{"answer": " red"}', "has no 'prompt'"),
    (
        b'{"prompt": [{"role": "user", "content": "The"}]}',
        "its 'prompt' is no text, but a list: write it out, by the tokenizer's apply_chat_template, say",
    ),
    (b'{"prompt": "The", "answer": 3}', "its 'answer' is no text, but a int"),
    (b"[1]", "is no object with a 'prompt', but a list"),
    (b'{"prompt": "\xff"}', "is no text in UTF-8 (invalid start byte at byte 12)"),
    (b'{"prompt": ""}', "the prompt has no tokens: give some words"),
    (b'{"prompt": "The \\ud800"}', "its 'prompt' is no text: it has halves of characters (surrogates)"),
    (b"[" * 200000, "is no JSON that can be read: it is nested too deeply"),
    (
        b'{"prompt": "%s"}' % (b"red " * 80),
        "prompt and answer are 81 tokens, but tiny reads 64 (max_position_embeddings in its config.json): give fewer "
        "words",
    ),
    (b'{"prompt": "The red"}', None),
]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model that reads 64 tokens."""
    return saved(tmp_path_factory.mktemp("short") / "tiny", trained_tokenizer(), max_position_embeddings=64)


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(line for line, _ in BAD))
    return tmp_path / "bad.jsonl"


def test_prompts_that_cannot_be_explained_say_why_and_the_others_are(bad, short, tmp_path):
    outcome = by_ranks(task(bad, tmp_path / "out", short), 2)
    reasons = {index: reason for index, (_, reason) in enumerate(BAD) if reason}
    assert {failure.sample: failure.reason for failure in outcome.failures} == reasons
    assert (outcome.rows, outcome.written) == (2, 2)
    found = rows_of(tmp_path / "out")
    assert {row["index"]: row["error"] for row in found if row["error"]} == reasons
    assert [row["matrix"] is None for row in found] == [reason is not None for _, reason in BAD]
    assert [row["index"] for row in found] == list(range(len(BAD)))
    again = by_ranks(task(bad, tmp_path / "out", short))
    assert again == outcome._replace(written=0, was_finished=True, notes=again.notes)


def test_an_entry_that_python_cannot_hold_is_a_row_with_its_reason(original, tmp_path):  # noqa: F811
    """Bytes that are called text, and a time after the year 9999."""
    late = arrow.array([None, None, 1 << 58, 0]).cast(arrow.timestamp("us"))
    said = arrow.array([b"The key is", b"\xff", b"The", b"The"]).view(arrow.string())
    parquet.write_table(arrow.table({"prompt": said, "id": late}), tmp_path / "p.parquet")
    outcome = by_ranks(task(tmp_path / "p.parquet", tmp_path / "out", original, block=4))
    assert [failure.sample for failure in outcome.failures] == [1, 2]
    reasons = [failure.reason for failure in outcome.failures]
    assert (
        reasons[0]
        == "its 'prompt' cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"
    )
    assert reasons[1].startswith("its 'id' cannot be read (")
    assert [row["error"] for row in rows_of(tmp_path / "out")] == [None, *reasons, None]


def test_one_that_the_model_does_not_run_on_is_a_row_with_its_reason(tmp_path):
    """MPT's biases end at max_seq_len, of which its config says nothing under the usual name."""
    tokenizer = trained_tokenizer()
    config = transformers.MptConfig(
        vocab_size=len(tokenizer), d_model=32, n_heads=4, n_layers=1, expansion_ratio=2, max_seq_len=16
    )
    transformers.MptForCausalLM(config).save_pretrained(tmp_path / "mpt")
    tokenizer.save_pretrained(tmp_path / "mpt")
    given = [
        {"prompt": "The key is"},
        {"prompt": "The" + " red" * 40},
        {"prompt": "The" + " red" * 40, "answer": " key"},
    ]
    outcome = by_ranks(task(lines(tmp_path / "p.jsonl", given), tmp_path / "out", tmp_path / "mpt"))
    assert [failure.sample for failure in outcome.failures] == [1, 2]
    for _, _, reason in outcome.failures:
        assert reason.startswith("mpt does not run on 4")
        assert "The size of tensor a" in reason
        assert reason.endswith(". Give fewer words, or another --dtype")
    assert outcome.rows == 1


def test_memory_that_torch_does_not_get_on_the_cpu_is_memory(original, tmp_path, monkeypatch):  # noqa: F811
    source = lines(tmp_path / "p.jsonl", [{"prompt": "The", "answer": " red"}, {"prompt": "The red key is"}])
    generation = text.generation

    def large(fmodel, params, ids, *more, **options):
        if ids.shape[1] == 5:
            torch.empty(1 << 58)  # which no machine has
        return generation(fmodel, params, ids, *more, **options)

    by_ranks(task(source, tmp_path / "whole", original))
    assert [len(row["ids"]) for row in rows_of(tmp_path / "whole")] == [2, 5]
    monkeypatch.setattr(text, "generation", large)
    outcome = by_ranks(task(source, tmp_path / "out", original))
    reason = "the memory does not suffice for its 5 tokens: a smaller --chunk takes less"
    assert outcome.failures == [(1, "p.jsonl#1", reason)]


def test_one_whose_relevance_is_not_finite_does_not_take_others_with_it(original, tmp_path, monkeypatch):  # noqa: F811
    """Those of its length are explained all the same."""
    source = lines(tmp_path / "p.jsonl", [{"prompt": f"The {color} key is"} for color in ("red", "blue", "red", "red")])
    by_ranks(task(source, tmp_path / "whole", original))
    bad_ids = rows_of(tmp_path / "whole")[1]["ids"]
    generation = text.generation

    def refuse(fmodel, params, ids, *more, **options):
        if any(row == bad_ids for row in ids.tolist()):
            raise InputError("the relevance of answer token 0 is not finite: a rule divides by zero.")
        return generation(fmodel, params, ids, *more, **options)

    monkeypatch.setattr(text, "generation", refuse)
    outcome = by_ranks(task(source, tmp_path / "out", original))
    assert outcome.failures == [
        (1, "p.jsonl#1", "the relevance of answer token 0 is not finite: a rule divides by zero")
    ]
    for number in (0, 2, 3):
        one, other = rows_of(tmp_path / "out")[number], rows_of(tmp_path / "whole")[number]
        np.testing.assert_allclose(np.array(one["matrix"]), np.array(other["matrix"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_fewer_at_once_are_tried_where_the_memory_does_not_suffice(original, tmp_path, monkeypatch, fits):  # noqa: F811
    source = lines(tmp_path / "p.jsonl", [{"prompt": "The red key is"}] * 4)
    generation, sizes = text.generation, []

    def full(fmodel, params, ids, *more, **options):
        if not sizes:  # the trial
            sizes.append(0)
        elif len(ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        else:
            sizes.append(len(ids))
        return generation(fmodel, params, ids, *more, **options)

    monkeypatch.setattr(text, "generation", full)
    outcome = by_ranks(task(source, tmp_path / "out", original, block=4))
    assert sizes[1:] == {0: [], 1: [1, 1, 1, 1], 2: [2, 2]}[fits]
    length = 1 + 4 if fits else 0
    reason = "the memory does not suffice for its {} tokens: a smaller --chunk takes less"
    if not fits:
        length = int(outcome.failures[0].reason.split()[7])
        assert [failure.reason for failure in outcome.failures] == [reason.format(length)] * 4


# -- runs that must not go on -----------------------------------------------------------------------------------------


def test_a_source_that_changed_is_refused(whole, original, tmp_path):  # noqa: F811
    source, out = Path(shutil.copy(whole.parent / "prompts.jsonl", tmp_path)), tmp_path / "out"
    by_ranks(task(source, out, original))
    data = source.read_bytes()
    status = source.stat()
    source.write_bytes(data.replace(b"red", b"Red", 1))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tells
    before = contents_of(out)
    with pytest.raises(
        FileError,
        match=r"l has changed since the run in .*out began: something else stands in its files\. Begin",
    ):
        by_ranks(task(source, out, original))
    source.write_bytes(data)
    assert by_ranks(task(source, out, original)).was_finished
    assert contents_of(out) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"composite": "cp_lrp"}, r"composite 'attn_lrp' \(now 'cp_lrp'\)"),
        ({"other": " blue"}, r"other None \(now ' blue'\)"),
        ({"dtype": "float64"}, r"other parameters, dtype 'float32' \(now 'float64'\)"),
        ({"words": 2}, r"words 1 \(now 2\)"),
        ({"batch": 2}, r"batch 4 \(now 2\)"),
        ({"block": 2}, r"block 3 \(now 2\)"),
    ],
)
def test_another_run_does_not_go_on(whole, original, options, words):  # noqa: F811
    before = contents_of(whole)
    with pytest.raises(FileError, match=rf" is of another run, with {words}\. Give the same options, or another --out"):
        by_ranks(task(whole.parent / "prompts.jsonl", whole, original, **options))
    assert contents_of(whole) == before


def test_another_tokenizer_does_not_go_on(whole, original, tmp_path):  # noqa: F811
    model = shutil.copytree(original, tmp_path / "tiny")
    path = model / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(FileError, match=r"is of another run, with other tokenizer\."):
        by_ranks(task(whole.parent / "prompts.jsonl", whole, model))


def test_pictures_and_texts_are_not_mixed(whole, original, classifier, folder, tmp_path):  # noqa: F811
    with pytest.raises(FileError, match=r"out holds texts: choose a new folder with --out\.$"):
        worker.Worker(distributed.Task(folder, whole, classifier))
    worker.Worker(distributed.Task(folder, tmp_path / "pictures", classifier))
    with pytest.raises(FileError, match=r"pictures holds pictures: choose a new folder with --out\.$"):
        by_ranks(task(whole.parent / "prompts.jsonl", tmp_path / "pictures", original))


def test_a_block_of_something_else_is_refused_and_kept(whole, original, tmp_path):  # noqa: F811
    out, source = shutil.copytree(whole, tmp_path / "out"), whole.parent / "prompts.jsonl"
    for data, words in (
        (
            (whole / "block-000001.parquet").read_bytes(),
            r"is of another run, with shard '1/3 of 3' \(now '2/3 of 3'\)\. Move .*2.parquet away, and",
        ),
        ((whole / "block-000002.parquet").read_bytes()[:-20], r"cannot be read: it is damaged, or something else"),
        (b"", r"cannot be read: it is damaged, or something else"),
    ):
        (out / "block-000002.parquet").write_bytes(data)
        with pytest.raises(FileError, match=rf"block-000002\.parquet {words}"):
            by_ranks(task(source, out, original))
        assert (out / "block-000002.parquet").read_bytes() == data
    parquet.write_table(arrow.table({"index": [1]}), out / "block-000002.parquet")
    with pytest.raises(FileError, match=r"000002\.parquet is none that `lrpfunc text --prompts` wrote\. Move "):
        by_ranks(task(source, out, original))


def test_a_full_disk_leaves_nothing_behind(whole, original, tmp_path, monkeypatch):  # noqa: F811
    one = worker.Worker(task(whole.parent / "prompts.jsonl", tmp_path / "out", original))
    monkeypatch.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device"):
        one.do(1)
    assert list(contents_of(tmp_path / "out")) == ["_run.json"]
    monkeypatch.undo()
    assert one.do(1).written == BLOCK


def test_what_no_prompt_could_mend_is_said_at_the_start(original, tmp_path, monkeypatch):  # noqa: F811
    source = lines(tmp_path / "p.jsonl", GIVEN)

    def refuse(*arguments, **options):
        raise InputError("the model is not causal.")

    monkeypatch.setattr(text, "generation", refuse)
    with pytest.raises(InputError, match="the model is not causal"):
        by_ranks(task(source, tmp_path / "out", original))
    assert not (tmp_path / "out").exists()


def test_sizes_must_be_sizes(whole, original, tmp_path):  # noqa: F811
    for options in ({"batch": 0}, {"chunk": 0}, {"words": 0}):
        with pytest.raises(InputError, match=r"^batch, chunk and words must be >= 1, but are "):
            by_ranks(task(whole.parent / "prompts.jsonl", tmp_path / "out", original, **options))
    with pytest.raises(ModelError, match=r"--other takes one token, but ' blue key' is 2"):
        by_ranks(task(whole.parent / "prompts.jsonl", tmp_path / "out", original, other=" blue key"))


def test_without_the_extra_a_line_says_how_to_install_it(whole, original, tmp_path, monkeypatch):  # noqa: F811
    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    with pytest.raises(MissingExtraError, match=r"^writing Parquet needs pyarrow: pip install 'lrpfunc\[parquet\]'$"):
        by_ranks(task(whole.parent / "prompts.jsonl", tmp_path / "out", original))


# -- put together -----------------------------------------------------------------------------------------------------


def test_merged_they_are_what_one_block_has(whole, original, tmp_path):  # noqa: F811
    told = []
    merged = merging.merge([whole], tmp_path / "all.parquet", progress=lambda *counts: told.append(counts))
    assert merged == (tmp_path / "all.parquet", 7, [], "")
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert parquet.read_table(tmp_path / "all.parquet").to_pylist() == rows_of(whole)
    assert TextRun(tmp_path / "all.parquet").details["shard"] == "1/1"
    with pytest.raises(FileError, match=r"all\.parquet exists: choose another --out, or give --overwrite\.$"):
        merging.merge([whole], tmp_path / "all.parquet")
    merging.merge([whole], tmp_path / "all.parquet", overwrite=True)


def test_what_is_missing_may_come_later(whole, tmp_path):
    blocks = [whole / f"block-{number:06}.parquet" for number in (1, 2, 3)]
    with pytest.raises(FileError, match=r"^block 2/3 is missing: have 1 and 3\. Make what is missing, or give --incom"):
        merging.merge([blocks[2], blocks[0]], tmp_path / "some.parquet")
    some = merging.merge([blocks[2], blocks[0]], tmp_path / "some.parquet", incomplete=True)
    assert (some.rows, some.missing) == (4, "block 2/3 is missing: have 1 and 3.")
    merging.merge([blocks[1], some.path], tmp_path / "all.parquet")
    merging.merge([whole], tmp_path / "whole.parquet")
    assert (tmp_path / "all.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(FileError, match=r"^a merge needs each block once, but block 1 is in two or more files\.$"):
        merging.merge([blocks[0], some.path], tmp_path / "twice.parquet")


def test_files_of_different_runs_are_not_merged(whole, original, tmp_path):  # noqa: F811
    by_ranks(task(whole.parent / "prompts.jsonl", tmp_path / "out", original, composite="cp_lrp"))
    paths = [whole / "block-000001.parquet", tmp_path / "out" / "block-000002.parquet"]
    with pytest.raises(
        FileError, match=r"^a merge needs files of one run, but .*1\.parquet and .*2\.parquet differ: compos"
    ):
        merging.merge(paths, tmp_path / "all.parquet")
    with pytest.raises(FileError, match=r"all\.h5 is to hold texts: give it a name that ends in \.parquet\.$"):
        merging.merge([whole], tmp_path / "all.h5")


def test_large_blocks_have_several_groups_of_rows(whole, original, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(files, "GROUP_BYTES", 200)
    by_ranks(task(whole.parent / "prompts.jsonl", tmp_path / "out", original, block=7, batch=2))
    found = parquet.ParquetFile(tmp_path / "out" / "block-000001.parquet")
    assert found.num_row_groups > 2
    assert TextRun(tmp_path / "out" / "block-000001.parquet").firsts == sorted(
        TextRun(tmp_path / "out" / "block-000001.parquet").firsts
    )
    assert [row["index"] for row in found.read().to_pylist()] == list(range(7))


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_page_shows_prompts_and_answers(bad, short, tmp_path):
    by_ranks(task(bad, tmp_path / "out", short))
    summary = report.write([tmp_path / "out"], tmp_path / "page.html")
    assert summary == (tmp_path / "page.html", 2, 12, (tmp_path / "page.html").stat().st_size, "")
    page = (tmp_path / "page.html").read_text()
    assert "What each answer rests on: tiny, attn_lrp" in page
    first = rows_of(tmp_path / "out")[0]
    assert f"0. bad.jsonl#0: {first['answer'].strip()}" in page
    assert page.count("a word)") == 2


def test_of_many_prompts_some_are_shown(whole, tmp_path, monkeypatch):
    summary = report.write([whole], tmp_path / "page.html", title="<mine>", shown=3)
    page = (tmp_path / "page.html").read_text()
    assert (summary.samples, summary.of) == (3, 7)
    assert "&lt;mine&gt;" in page
    assert [number for number in range(7) if f"{number}. " in page] == [0, 3, 6]
    assert "<b>" not in page.split("<body>")[-1].split("</style>")[-1]
    monkeypatch.setattr(report, "TOKENS", 10)
    assert report.write([whole], tmp_path / "page.html", overwrite=True).samples < 7


def test_a_page_of_failures_alone_is_refused(short, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n')
    by_ranks(task(tmp_path / "p.jsonl", tmp_path / "out", short))
    with pytest.raises(FileError, match=r"^no prompt in .* has an explanation to show: see its column 'error'\.$"):
        report.write([tmp_path / "out"], tmp_path / "page.html")


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_makes_tables_and_goes_on(bad, short, tmp_path):
    out = tmp_path / "out"
    for end in ("", "nothing left to do"):
        ended = lrp("text", "-m", short, "--prompts", bad, "-o", out, "--block-size", 4)
        assert ended.exit_code == cli.INCOMPLETE, ended.stderr
        assert ended.stdout.startswith(f"{end}: {out} was finished.\n" if end else f"{out}: 2 explanations")
        assert "error: 10 prompts could not be explained:" in ended.stderr
        assert "error: bad.jsonl#7 the prompt has no tokens: give some words" in ended.stderr
    assert fine("merge", out, "-o", tmp_path / "all.parquet").stdout == f"{tmp_path / 'all.parquet'}: 2 explanations\n"
    assert fine("report", out, "-o", tmp_path / "page.html").stdout.startswith(
        f"{tmp_path / 'page.html'}: 2 of 12 prompts, "
    )


def test_processes_that_a_launcher_starts_do_their_blocks(bad, short, tmp_path, monkeypatch):
    """What cannot be explained does not change their exit code, as launchers then end the others."""
    out = tmp_path / "out"
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        fine("text", "-m", short, "--prompts", bad, "-o", out, "--block-size", 4, "--engine", "ranks")
        blocks = [f"block-{number:06}.parquet" for number in ((2,) if rank == "1" else (1, 2, 3))]
        assert sorted(contents_of(out)) == ["_run.json", *blocks]


OF_ONE = "--answer and --graph are of one prompt: the answers of a file stand in it."


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give one prompt by --prompt, or a file of them by --prompts."),
        (["-p", "The", "--prompts", "p.jsonl"], "give one prompt by --prompt, or a file of them by --prompts."),
        (["-p", "The", "--engine", "ray"], "--batch and what is for many processes go with --prompts."),
        (["-p", "The", "--batch", "3"], "--batch and what is for many processes go with --prompts."),
        (["--prompts", "p.jsonl", "-a", " red"], OF_ONE),
        (["--prompts", "p.jsonl", "--graph", "1"], OF_ONE),
        (["--prompts", "p.jsonl", "--overwrite"], "blocks that are there are kept: choose another --out, or remove the "
            "folder."),
        (["--prompts", "p.jsonl", "--engine", "spark"], "an engine is ray or ranks, but 'spark' is none."),
        (["--prompts", "p.jsonl", "--address", "auto"], "--address is for --engine ray."),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_one_line(more, message, original, tmp_path):  # noqa: F811
    assert complaint(lrp("text", "-m", original, "-o", tmp_path / "out", *more), cli.FAILED) == f"error: {message}"


def test_texts_are_compared_by_pages_of_their_own(whole, tmp_path):
    ended = lrp("report", whole, "--with", whole, "-o", tmp_path / "page.html")
    assert complaint(ended, cli.FAILED) == "error: --with is for pictures: of texts make a page of each run."


def test_a_data_set_of_prompts_is_sent_where_it_belongs(source, tmp_path):
    ended = lrp("dataset", source, "-m", "digits", "-o", tmp_path / "all.h5")
    assert complaint(ended, cli.BAD_PATH) == (
        f"error: {source} holds no pictures. Prompts go to `lrpfunc text --prompts {source}`."
    )


def test_what_stops_the_command_says_how_to_go_on(whole, original, monkeypatch):  # noqa: F811
    source, out = whole.parent / "prompts.jsonl", whole.parent / "stopped"
    options = ("text", "-m", original, "--prompts", source, "-o", out, "--block-size", BLOCK, "--batch", BATCH)

    def stopped(self, done, *more):
        if done > BLOCK:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "__call__", stopped)
        ended = lrp(*options)
    assert ended.exit_code == cli.INTERRUPTED
    assert ended.stderr == "\nstopped. Tables that are whole stay; the same command makes the rest.\n"
    assert sorted(contents_of(out)) == ["_run.json", "block-000001.parquet"]
    with monkeypatch.context() as patched:
        patched.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
        said = complaint(lrp(*options), cli.BAD_PATH)
    assert said.endswith(
        "No space left on device. There is no space left: make some, or write elsewhere with --out. The same command "
        "then goes on."
    )
    assert fine(*options).stdout == f"{out}: 7 explanations\n"
    assert contents_of(out) == contents_of(whole)


def test_a_device_that_failed_ends_the_run(source, original, tmp_path, monkeypatch):  # noqa: F811
    """All that comes after it would fail, too, and be taken for prompts that cannot be explained."""
    generation, calls = text.generation, []

    def lost(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 1:  # the first is the trial
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return generation(*arguments, **options)

    monkeypatch.setattr(text, "generation", lost)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        by_ranks(task(source, tmp_path / "out", original))
    assert list(contents_of(tmp_path / "out")) == ["_run.json"]
