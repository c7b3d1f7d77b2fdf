"""Recurrent layers written out as their documentation says, without lrpfunc."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WrittenOut(nn.Module):
    """`nn.LSTM`, `nn.GRU` or `nn.RNN`, with its parameters, step by step."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, states=None):
        layer = self.layer
        x = x.transpose(0, 1) if layer.batch_first else x
        directions = 1 + layer.bidirectional
        if states is None:
            widths = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 1 + isinstance(layer, nn.LSTM)]
            states = [x.new_zeros(layer.num_layers * directions, x.shape[1], width) for width in widths]
        states, ends = [states] if isinstance(states, Tensor) else states, []
        for number in range(layer.num_layers):
            outputs = []
            for way in ("", "_reverse")[:directions]:
                state = [one[number * directions + len(outputs)] for one in states]
                made = self._run(x.flip(0) if way else x, state, f"_l{number}{way}")
                outputs.append(torch.stack([state[0] for state in (made[::-1] if way else made)]))
                ends.append(made[-1])
            x = torch.cat(outputs, -1)
        last = [torch.stack(one) for one in zip(*ends, strict=True)]
        return x.transpose(0, 1) if layer.batch_first else x, tuple(last) if len(last) > 1 else last[0]

    def _run(self, x: Tensor, state, suffix: str) -> list:
        weights = [
            getattr(self.layer, f"{name}{suffix}", None)
            for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr")
        ]
        made = []
        for row in x:
            state = CELLS[type(self.layer)](self.layer, row, state, *weights)
            made.append(state)
        return made


def lstm(layer, x, state, w, b, v, d, projection):
    h, c = state
    i, f, g, o = (F.linear(x, w, b) + F.linear(h, v, d)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else F.linear(h, projection)), c


def gru(layer, x, state, w, b, v, d, _):
    (h,) = state
    (r, z, n), (hr, hz, hn) = F.linear(x, w, b).chunk(3, -1), F.linear(h, v, d).chunk(3, -1)
    z = (z + hz).sigmoid()
    return ((1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h,)


def rnn(layer, x, state, w, b, v, d, _):
    z = F.linear(x, w, b) + F.linear(state[0], v, d)
    return (z.tanh() if layer.nonlinearity == "tanh" else z.relu(),)


CELLS = {nn.LSTM: lstm, nn.GRU: gru, nn.RNN: rnn}


class CellWrittenOut(nn.Module):
    """`nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell`, with its parameters."""

    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, states):
        weights = [getattr(self.cell, name) for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
        kind = {nn.LSTMCell: lstm, nn.GRUCell: gru, nn.RNNCell: rnn}[type(self.cell)]
        made = kind(self.cell, x, [states] if isinstance(states, Tensor) else states, *weights, None)
        return made if len(made) > 1 else made[0]
