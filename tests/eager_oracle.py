"""AttnLRP and CP-LRP without lrpfunc: the module itself, run eagerly with other derivatives, and x * gradient.

Where every rule keeps the form R = x * c, the coefficient c moves backwards as the gradient does of functions that have
the module's values but other derivatives (the "detach trick"). With [v] for v as a constant:

| in the module | AttnLRP | CP-LRP |
|---|---|---|
| layers, sums, means, maxima, movements | f(x) | f(x) |
| activations and powers, called or a module of their own | x [f(x) / x] | x [f(x) / x] |
| normalizations, quotients | x / [d] | x / [d] |
| softmax | softmax(x) | softmax(x) |
| products with exp(x) or softplus(x), the decay and step of state spaces | a [b] | a [b] |
| other products of two active values, or matrices | half(a) half(b) | a [b] if b is the gate, else half(a) half(b) |

where half(v) = [v] + (v - [v]) / 2 has half the derivative. Attention as a whole is written out, so that by CP-LRP its
probabilities, a softmax, are the gate. What is a gate to a product: a softmax or sigmoid before a tanh, that before any
other activation, that before all else; of two alike neither is; to what
was scaled by a decay no activation is. A value is active if it requires a gradient.

Sources: Achtibat et al. 2024, arXiv:2402.05602; Ali et al. 2022, arXiv:2202.07304.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

DECAY, SIGMOID, TANH, ACTIVATED, NO_GATE, SCALED = 4, 3, 2, 1, 0, -1  # ranks: how much of a gate a value is

ACTIVATIONS = {
    **dict.fromkeys(("sigmoid", "hardsigmoid"), SIGMOID),
    "tanh": TANH,
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "gelu", "silu", "mish", "hardswish", "hardtanh"), ACTIVATED),
    **dict.fromkeys(("elu", "selu", "celu", "logsigmoid"), ACTIVATED),
    "softplus": DECAY,
}
POWERS = {"pow", "square", "sqrt", "abs", "clamp", "clamp_min", "clamp_max"}
DENOMINATORS = {"rsqrt", "reciprocal", "rtruediv", "rdiv", "norm", "vector_norm", "linalg_vector_norm"}
QUOTIENTS = {"div", "divide", "true_divide", "truediv"}
SCALAR_PRODUCTS, MATRIX_PRODUCTS = {"mul", "multiply", "rmul"}, {"matmul", "rmatmul", "mm", "bmm", "einsum", "baddbmm"}
SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub"}
LAYERS = {"linear", "addmm", "conv1d", "conv2d", "conv3d", "sum", "mean"}
IN_PLACE = {
    "__imul__": torch.mul, "mul_": torch.mul, "__itruediv__": torch.div, "div_": torch.div, "clamp_": torch.clamp,
    "relu_": torch.relu, "sigmoid_": torch.sigmoid, "tanh_": torch.tanh,
}  # fmt: skip


def relevance(module: nn.Module, x: dict[str, Tensor], method: str, target: int) -> dict[str, Tensor]:
    """Of every input for the output's column `target`, by "attn_lrp" or "cp_lrp"."""
    module.requires_grad_(False)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in x.items()}
    with register_module_forward_hook(_as_activation), DetachTrick(method):  # of modules made on the way as well
        output = module(**leaves)
    gradients = torch.autograd.grad(output[:, target].sum(), list(leaves.values()))
    return {name: x[name] * gradient for name, gradient in zip(leaves, gradients, strict=True)}


class DetachTrick(TorchFunctionMode):
    """Functions of torch keep their values and have the derivatives of the table above."""

    def __init__(self, method: str):
        super().__init__()
        self.gates_are_constants = {"attn_lrp": False, "cp_lrp": True}[method]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        active = list(_active((args, kwargs)))
        if not active:
            return func(*args, **kwargs)
        if func.__name__ in IN_PLACE:  # into a copy first, as what is changed may be needed for the gradient
            changed = args[0].clone()
            changed.rank = rank_of(args[0])
            result = self.__torch_function__(IN_PLACE[func.__name__], (), (changed, *args[1:]), kwargs)
            args[0].copy_(result).rank = rank_of(result)
            return args[0]
        name = func.__name__.strip("_")
        result = self.value(func, name, args, kwargs, active)
        rank = self.rank(name, args, active)
        for tensor in _active(result):
            tensor.rank = rank
        return result

    def value(self, func, name, args, kwargs, active):
        if name == "scaled_dot_product_attention":
            with self:
                return attention(*args, **kwargs)
        assert name != "multi_head_attention_forward", "attention with its projections is not in the table"
        if name in NORMALIZATIONS:
            return NORMALIZATIONS[name](*args, **kwargs)
        if name in DENOMINATORS or (name == "pow" and args[1] < 0):
            return func(*args, **kwargs).detach()
        if name in ACTIVATIONS or name in POWERS:
            result = with_ratio(active[0], func(*args, **kwargs))
            result.activates = active[0]
            return result
        if name in QUOTIENTS and isinstance(args[1], Tensor):
            return func(args[0], args[1].detach(), *args[2:], **kwargs)
        if name in SCALAR_PRODUCTS and len(active) == 1:
            result = func(*args, **kwargs)
            result.scales = active[0]
            return result
        if name in SCALAR_PRODUCTS | MATRIX_PRODUCTS and len(active) == 2:
            factors = self.factors(*active)
            changed = dict(zip(map(id, active), factors, strict=True))
            args, kwargs = _replaced((args, kwargs), changed)
        return func(*args, **kwargs)

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What the derivative goes to."""
        if _is_slope(a, b):
            return a.detach(), b
        if _is_slope(b, a):
            return a, b.detach()
        ranks = list(map(rank_of, (a, b)))
        if ranks.count(DECAY) == 1:
            return (a.detach(), b) if ranks[0] == DECAY else (a, b.detach())
        needed = SIGMOID if SCALED in ranks else ACTIVATED
        ranks = [rank if rank >= needed else NO_GATE for rank in ranks]
        if self.gates_are_constants and ranks[0] != ranks[1]:
            return (a.detach(), b) if ranks[0] > ranks[1] else (a, b.detach())
        return half(a), half(b)

    def rank(self, name, args, active) -> int:
        """What moves, scales or shifts a gate gives one; what layers and products give is none."""
        if name == "softmax":
            return SIGMOID
        if name == "exp":
            return DECAY
        if name in SCALAR_PRODUCTS | MATRIX_PRODUCTS and list(map(rank_of, active)).count(DECAY) == 1 < len(active):
            return SCALED
        if name in ACTIVATIONS:
            return ACTIVATIONS[name]
        if name in SCALAR_PRODUCTS and len(active) == 2 and (_is_slope(*active) or _is_slope(*active[::-1])):
            return ACTIVATED
        if name in LAYERS | MATRIX_PRODUCTS or (name in SCALAR_PRODUCTS | SUMS and len(active) == 2):
            return NO_GATE
        return rank_of(args[0]) if name in QUOTIENTS | {"type_as"} else min(map(rank_of, active))


def rank_of(value: Tensor) -> int:
    return getattr(value, "rank", NO_GATE)


def half(v: Tensor) -> Tensor:
    return v.detach() + (v - v.detach()) / 2


def with_ratio(x: Tensor, y: Tensor) -> Tensor:
    """y as x [y / x]. An x of zero or minus infinity has no relevance to give on."""
    x = torch.where((x != 0) & x.isfinite(), x, 0)
    return y.detach() + (x - x.detach()) * torch.where(x == 0, 0, y / torch.where(x == 0, 1, x)).detach()


def _is_slope(slope: Tensor, x: Tensor) -> bool:
    """Of x * sigmoid(a x)."""
    argument = getattr(slope, "activates", None)
    return argument is not None and (argument is x or getattr(argument, "scales", None) is x)


def _is_activation_written_out(module: nn.Module) -> bool:
    return type(module).__module__ == "transformers.activations" or "gelu" in type(module).__name__.lower()


def _as_activation(module, inputs, y):
    if not (_is_activation_written_out(module) and isinstance(y, Tensor) and y.requires_grad):
        return None
    with torch._C.DisableTorchFunction():
        result = with_ratio(inputs[0], y)
    result.rank = max(rank_of(y), ACTIVATED)
    return result


class InDouble(TorchFunctionMode):
    """What a model computes in float32 whatever its own precision is computed in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


# -- what torch computes as a whole -----------------------------------------------------------------------------------


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (v.repeat_interleave(query.shape[-3] // v.shape[-3], -3) for v in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, *_):
    axes = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    return _scaled(centred / _deviation(centred, axes, eps), weight, bias)


def rms_norm(x, normalized_shape, weight=None, eps=None):
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(x / _deviation(x, list(range(-len(normalized_shape), 0)), eps), weight, None)


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, *_):
    grouped = x.unflatten(1, (num_groups, -1)).flatten(2)
    centred = grouped - grouped.mean(-1, keepdim=True)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    weight, bias = (None if v is None else v.reshape(shape) for v in (weight, bias))
    return _scaled((centred / _deviation(centred, -1, eps)).reshape(x.shape), weight, bias)


def normalize(x, p=2.0, dim=1, eps=1e-12, out=None):
    return x / x.norm(p, dim, keepdim=True).clamp_min(eps).detach()


def _deviation(x, axes, eps):
    return (x.square().mean(axes, keepdim=True) + eps).sqrt().detach()


def _scaled(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


NORMALIZATIONS = {"layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm, "normalize": normalize}


# -- arguments --------------------------------------------------------------------------------------------------------


def _active(tree) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.requires_grad:
            yield tree
    elif isinstance(tree, dict):
        yield from _active(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for leaf in tree:
            yield from _active(leaf)


def _replaced(tree, changed: dict[int, Tensor]):
    if isinstance(tree, dict):
        return {key: _replaced(value, changed) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_replaced(leaf, changed) for leaf in tree)
    return changed.get(id(tree), tree) if isinstance(tree, Tensor) else tree
