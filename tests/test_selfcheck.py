"""`lrpfunc check`: all laws hold here, and what is broken is found, by the law that it breaks."""

import platform

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import lrpfunc
from lrpfunc import cli, rules
from lrpfunc.errors import ModelError
from lrpfunc.pictures import selfcheck
from lrpfunc.rules import Flow

TEXTS = [law.text for law in selfcheck.LAWS]


def broken(result):
    return {one.text for one in result.findings if not one.holds}


def checked():
    return CliRunner().invoke(cli.app, ["check"])


def test_all_laws_hold_here():
    state = torch.get_rng_state()
    result = selfcheck.run()
    assert result.holds
    assert [one.text for one in result.findings] == TEXTS
    assert torch.equal(torch.get_rng_state(), state)


def test_the_command_prints_a_line_for_each_law():
    answer = checked()
    assert (answer.exit_code, answer.stderr) == (0, "")
    where, head, *lines, last = answer.stdout.splitlines()
    assert where == (
        f"lrpfunc {lrpfunc.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, device cpu, float64"
    )
    assert head.split() == ["law", "deviation", "allowed"]
    assert len(lines) == len(TEXTS)
    assert all(line.startswith(text) and line.split()[-1] == "ok" for line, text in zip(lines, TEXTS, strict=True))
    assert last == "all laws hold"


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(ModelError, match=r"^the device 'abacus' cannot be used here"):
        selfcheck.run("abacus")
    answer = CliRunner().invoke(cli.app, ["check", "--device", "abacus"])
    assert (answer.exit_code, answer.stdout) == (cli.FAILED, "")


# -- what is broken ---------------------------------------------------------------------------------------------------


def doubled(rule):
    """A rule that hands on twice what it should."""

    def backward(operation, residuals, flow):
        moved = rule.backward(operation, residuals, flow)
        form = "relevance" if moved.is_relevance else "coefficient"
        return Flow(**{form: 2 * moved.tensor})

    return rule._replace(backward=backward)


def test_a_rule_that_is_broken_is_found(monkeypatch):
    epsilon = rules.epsilon
    monkeypatch.setattr(rules, "epsilon", lambda *given: doubled(epsilon(*given)))
    answer = checked()
    assert answer.exit_code == cli.FAILED
    *_, last = lines = answer.stdout.splitlines()
    assert [line.rsplit(maxsplit=3)[0] for line in lines if line.endswith("FAILED")] == TEXTS[1:4]
    assert last == f"3 of {len(TEXTS)} laws do not hold"


def with_other_parameters(functionalize):
    def wrong(module, x):
        fmodel, params = functionalize(module, x)
        return fmodel, {name: 2 * leaf for name, leaf in params.items()}

    return wrong


def of_the_next_class(prepare):
    return lambda fmodel, params, entries: lambda x, target: prepare(fmodel, params, entries)(x, target + 1)


def of_one_class(attribute_each):
    return lambda fmodel, params, x, entries, targets: attribute_each(fmodel, params, x, entries, [0] * len(targets))


def that_changes_its_module(relevance):
    return lambda module, x: module.head.bias.data.add_(1)


def of_half_the_weights(load):
    def wrong(path, device):
        canonical = load(path, device)
        return canonical._replace(params={name: leaf / 2 for name, leaf in canonical.params.items()})

    return wrong


def that_forgets_the_originals(canonize):
    return lambda fmodel, params: canonize(fmodel, params)._replace(restore=lambda params: params)


@pytest.mark.parametrize(
    ("name", "made_wrong", "text"),
    [
        ("functionalize", with_other_parameters, "a program computes what its module computes"),
        ("prepare", of_the_next_class, "a prepared explanation equals attribute"),
        ("attribute_each", of_one_class, "vmap over samples and targets equals the loop"),
        ("relevance", that_changes_its_module, "module, parameters and input stay as they were"),
        ("load", of_half_the_weights, "what is saved and loaded explains the same"),
        ("canonize", that_forgets_the_originals, "restore gives the parameters back, bit for bit"),
    ],
)
def test_what_is_broken_is_found_by_its_law(monkeypatch, name, made_wrong, text):
    """Others may break along with it."""
    monkeypatch.setattr(lrpfunc, name, made_wrong(getattr(lrpfunc, name)))
    result = selfcheck.run()
    assert text in broken(result)
    assert not result.holds


def test_what_is_no_number_is_no_small_one():
    assert not selfcheck.Finding("a law", float("nan"), 1.0).holds
    assert selfcheck.Finding("a law", 0.0, 0.0).holds


def test_an_error_is_a_law_that_does_not_hold_and_the_others_are_tried(monkeypatch):
    def refuse(path, what):
        raise OSError("there is no disk\nnor anything else")

    monkeypatch.setattr(lrpfunc, "save", refuse)
    answer = checked()
    assert answer.exit_code == cli.FAILED
    assert answer.stdout.splitlines()[-2:] == [
        "what is saved and loaded explains the same: OSError: there is no disk",
        f"1 of {len(TEXTS)} laws do not hold",
    ]


def test_a_terminal_gets_colours(capsys):
    result = selfcheck.Result([selfcheck.Finding("a law", 1.0, 0.0), selfcheck.Finding("another", 0.0, 0.0)], "here")
    selfcheck.table(result, Console(force_terminal=True, width=80))
    shown = capsys.readouterr().out
    assert "\x1b[31mFAILED" in shown
    assert "\x1b[32mok" in shown
