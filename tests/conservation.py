"""What several test modules watch relevance with; `helpers` does without lrpfunc, as LXT's environment does."""

import torch

import lrpfunc
from lrpfunc import composites


def watched(composite, seen: list[str], **tolerance: float):
    """The composite with rules that check that as much relevance leaves an equation as has arrived at it."""

    def watch(name, rule):
        def forward(operation, *inputs):
            output, residuals = rule.forward(operation, *inputs)
            return output, (residuals, inputs, output)

        def backward(operation, residuals, flow):
            residuals, inputs, output = residuals
            moved = rule.backward(operation, residuals, flow)
            flows = [moved] if isinstance(moved, lrpfunc.Flow) else moved
            pairs = [(f, x) for f, x in zip(flows, inputs, strict=True) if f is not None]
            sent = sum(f.relevance(x).flatten(1).sum(1) for f, x in pairs)
            outputs = output if isinstance(output, (tuple, list)) else [output]
            parts = zip(flow.tensor if len(outputs) > 1 else [flow.tensor], outputs, strict=True)
            arrived = sum(flow.moved(part).relevance(value).flatten(1).sum(1) for part, value in parts)
            torch.testing.assert_close(sent, arrived, **tolerance, msg=lambda text: f"{name}: {text}")
            seen.append(name)
            return moved

        return lrpfunc.Rule(rule.label, forward, backward, stops=rule.stops, takes_steps=rule.takes_steps)

    return lambda program: {n: watch(n, rule) for n, rule in composites.assign(program, composite).items()}
