"""Tracing changes nothing that is not its own, also while other threads trace or use the same model."""

import copy
import logging
import sys
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import lrpfunc
from lrpfunc.errors import InputError, TraceError
from tests.traced import assert_equal, x_of

PATIENCE = 60  # seconds after which a test fails instead of waiting for good


def in_threads(*functions: Callable) -> list:
    """What functions return that run at the same time, each in a thread; the first error is raised."""
    results: list = [None] * len(functions)

    def run(i: int) -> None:
        try:
            results[i] = functions[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class Meeting(nn.Module):
    """A model that stops in the middle of being traced, until another thread has done something."""

    def __init__(self, fails: bool = False):
        super().__init__()
        self.fc, self.last, self.fails = nn.Linear(3, 4), nn.Linear(4, 2), fails
        self.thread: int | None = None
        self.inside, self.done = threading.Event(), threading.Event()
        self.requires_grad_(False)

    def forward(self, x):
        h = self.fc(x)
        if threading.get_ident() == self.thread:
            self.inside.set()
            assert self.done.wait(PATIENCE)
            if self.fails and h.sum() > 0:
                return h
        return self.last(h.relu())

    def traced_while(self, act: Callable):
        """What `act` returns, called while another thread traces the model, and the trace."""

        def trace():
            self.thread = threading.get_ident()
            try:
                return lrpfunc.functionalize(self, x_of())
            finally:
                self.inside.set()

        def meet():
            assert self.inside.wait(PATIENCE)
            try:
                return act()
            finally:
                self.done.set()

        return in_threads(meet, trace)


def test_models_traced_in_several_threads_at_once():
    models = [
        nn.Sequential(nn.Linear(3, 4 + i), nn.ReLU(), nn.Linear(4 + i, 2)).requires_grad_(False) for i in range(4)
    ]
    start = threading.Barrier(len(models))

    def trace(model):
        start.wait(PATIENCE)
        return lrpfunc.functionalize(model, x_of())

    traces = in_threads(*(lambda model=model: trace(model) for model in models))
    for model, (fmodel, params) in zip(models, traces, strict=True):
        assert_equal(fmodel(params, x_of(5)), model(x_of(5)))


def test_one_model_traced_in_several_threads_at_once():
    model, start = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).requires_grad_(False), threading.Barrier(3)

    def trace():
        start.wait(PATIENCE)
        return lrpfunc.functionalize(model, x_of())

    for fmodel, params in in_threads(trace, trace, trace):
        assert_equal(fmodel(params, x_of(5)), model(x_of(5)))


def test_tracing_within_a_trace():
    inner = nn.Linear(3, 4).requires_grad_(False)

    def function(params, x):
        fmodel, given = lrpfunc.functionalize(inner, x_of())
        return fmodel(given, x_of()).sum() * x

    with pytest.raises(TraceError, match="cannot be exported"):
        lrpfunc.trace(function, {}, x_of())
    assert_equal(lrpfunc.functionalize(inner, x_of())[0](dict(inner.named_parameters()), x_of()), inner(x_of()))


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_is_traced_serves_meanwhile(fails):
    model = Meeting(fails)
    expected = model(x_of(5))
    model.twice = model.fc  # a module under two names is traced in another way

    def serve():
        results = [model(x_of(5)) for _ in range(10)]
        state = [type(p) for p in model.parameters()]
        return results, state, model.fc is model.twice and type(model.fc) is nn.Linear

    if fails:
        with pytest.raises(TraceError, match="decides by a value"):
            model.traced_while(serve)
        return
    (results, state, is_plain), (fmodel, params) = model.traced_while(serve)
    assert all(type(result) is torch.Tensor for result in results)
    for result in results:
        assert_equal(result, expected)
    assert is_plain
    assert set(state) == {nn.Parameter}
    assert_equal(fmodel(params, x_of(5)), expected)
    assert {e.name for e in fmodel.equations if e.outputs[0].is_tensor} >= {"last"}


def test_other_models_that_serve_meanwhile_leave_no_trace():
    model, other = Meeting(), nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1)))
    expected = other(x_of())
    result, (fmodel, _) = model.traced_while(lambda: other(x_of()))
    assert_equal(result, expected)
    assert [equation.name for equation in fmodel.equations] == ["fc", "relu", "last"]


def test_the_process_is_the_same_meanwhile_and_afterwards():
    def state():
        levels = {name: logging.getLogger(name).getEffectiveLevel() for name in list(logging.root.manager.loggerDict)}
        return sys.stderr, sys.stdout, warnings.filters, list(warnings.filters), warnings.showwarning, levels

    lrpfunc.functionalize(nn.Linear(3, 2), x_of())  # imports, which make loggers
    before = state()
    meanwhile, _ = Meeting().traced_while(state)
    assert [a is b for a, b in zip(meanwhile[:3], before[:3], strict=True)] == [True] * 3
    assert meanwhile == before
    assert state() == before
    with pytest.raises(TraceError):
        Meeting(fails=True).traced_while(state)
    assert state() == before


def test_what_another_thread_logs_meanwhile_is_heard(caplog):
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    Meeting().traced_while(lambda: logger.warning("heard"))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == ["heard"]
    assert not logger.filters


# -- objects ----------------------------------------------------------------------------------------------------------


class Cache:
    """An object that grows in every call, as caches of keys and values do."""

    def __init__(self):
        self.parts, self.length, self.layers = [], 0, {}

    def update(self, x):
        self.parts.append(x)
        self.layers["last"] = x
        self.length += len(self.parts)
        return torch.cat(self.parts, 1)


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.own = nn.Linear(3, 3).requires_grad_(False), Cache()

    def forward(self, x, cache=None):
        return self.own.update(cache.update(self.fc(x))).sum(1)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("by_name", [False, True])
def test_objects_given_along_are_left_alone(length, by_name):
    model, cache = Caching(), Cache()
    for _ in range(length):
        cache.update(x_of())
    before = copy.deepcopy(vars(cache))
    parts = list(cache.parts)
    args, keywords = ((x_of(),), {"cache": cache}) if by_name else ((x_of(), cache), {})
    fmodel, params = lrpfunc.functionalize(model, *args, **keywords)
    found = fmodel(params, *args, **keywords)
    assert_equal(vars(cache), before)
    assert all(a is b for a, b in zip(cache.parts, parts, strict=True))
    assert vars(model.own) == vars(Cache())
    assert_equal(found, model(*args, **keywords))


def test_an_object_that_has_changed_since_is_refused():
    model, cache = Caching(), Cache()
    fmodel, params = lrpfunc.functionalize(model, x_of(), cache)
    expected = model(x_of(), Cache())
    assert_equal(fmodel(params, x_of(), Cache()), expected)
    cache.update(x_of())
    with pytest.raises(InputError, match=r"input 'cache' is part of the trace with the value .* Trace the model again"):
        fmodel(params, x_of(), cache)


def test_what_hooks_and_closures_hold_is_left_alone():
    model, seen = nn.Sequential(nn.Linear(3, 3)).requires_grad_(False), {"all": []}

    def hook(module, inputs, output):
        seen["last"] = output
        seen["all"].append(output)
        module.last = output
        return output * 2

    model[0].register_forward_hook(hook)
    fmodel, params = lrpfunc.functionalize(model, x_of())
    assert seen == {"all": []}
    assert not hasattr(model[0], "last")
    assert_equal(fmodel(params, x_of()), model(x_of()))

    def function(params, x):
        seen["all"].append(x)
        return torch.func.functional_call(model, params, x)

    seen = {"all": []}
    params = {name: p.detach() for name, p in model.named_parameters()}
    fmodel, params = lrpfunc.trace(function, params, x_of())
    assert seen == {"all": []}
    assert_equal(fmodel(params, x_of()), model(x_of()))
