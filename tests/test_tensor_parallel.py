"""Weights that are sharded over processes (torch's DTensor): the explanation is that of the whole weights.

lrpfunc has no code for it: its programs, rules and flows are operations of torch, which DTensor follows.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import lrpfunc
from lrpfunc import composites, rules, text
from lrpfunc.errors import ParameterError
from tests import transformer_zoo

BY_COLUMNS = ("0.weight", "0.bias", *(f"{name}_proj.weight" for name in ("q", "gate", "up")))
KEYS = ("k_proj.weight", "v_proj.weight")  # of two heads, which four processes cannot share
BY_ROWS = ("2.weight", "o_proj.weight", "down_proj.weight")


def close(got, expected) -> None:
    torch.testing.assert_close(got.full_tensor(), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def sharded(params, mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    by_columns = BY_COLUMNS if mesh.size() > 2 else (*BY_COLUMNS, *KEYS)

    def placed(name):
        return Shard(0) if name.endswith(by_columns) else Shard(1) if name.endswith(BY_ROWS) else Replicate()

    return {name: distribute_tensor(leaf, mesh, [placed(name)]) for name, leaf in params.items()}


def explained_on_shards(rank: int, count: int, store: str) -> None:
    """What each of `count` processes does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.distributed.tensor.experimental import implicit_replication

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    fmodel, params = lrpfunc.functionalize(model, x)
    shards, copies = sharded(params, mesh), distribute_tensor(x, mesh, [Replicate()])
    assert shards["0.weight"].to_local().shape == (16 // count, 8)
    with implicit_replication():  # seeds, masks and places are the same everywhere
        for rule in (
            *(rules.epsilon(), rules.zplus(), rules.alpha_beta(2, 1), rules.gamma(), rules.flat()),
            *(rules.wsquare(), rules.zbox(-3.0, 3.0)),
        ):
            plain = lrpfunc.attribute(fmodel, params, x, rule, 1)
            close(lrpfunc.attribute(fmodel, shards, copies, rule, 1), plain)
            close(lrpfunc.attribute(fmodel, shards, copies, rule, 1, checkpoint=2), plain)
        for composite in (composites.attn_lrp(), composites.cp_lrp()):
            ids = torch.randint(1, 50, (2, 7))
            fmodel, params = llama = lrpfunc.functionalize(transformer_zoo.build("llama"), ids)
            plain = lrpfunc.attribute(*llama, ids, composite, text.token(3))
            copies, shards = distribute_tensor(ids, mesh, [Replicate()]), sharded(params, mesh)
            close(lrpfunc.attribute(fmodel, shards, copies, composite, text.token(3)), plain)
    dist.destroy_process_group()


def convolved(rank: int, count: int, store: str) -> None:
    """Of convolutions torch's DTensor may split the samples, and nothing else."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.experimental import implicit_replication as implicit

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 4)
    fmodel, params = lrpfunc.functionalize(nn.Sequential(*layers).double(), x)
    plain = lrpfunc.attribute(fmodel, params, x, rules.gamma(), 1)
    for split, way in (("0.weight", 0), ("2.weight", 1), ("4.weight", 0), ("x", 1), ("x", 3), ("x", 0), ("", 0)):
        placed = {
            name: distribute_tensor(leaf.detach(), mesh, [Shard(way) if name == split else Replicate()])
            for name, leaf in (params | {"x": x}).items()
        }
        inputs = placed.pop("x")
        with implicit():
            if split and (split, way) != ("x", 0):
                with pytest.raises(
                    ParameterError, match=r"' is sharded, and torch's DTensor computes convolutions of "
                ):
                    lrpfunc.attribute(fmodel, placed, inputs, rules.gamma(), 1)
            else:
                close(lrpfunc.attribute(fmodel, placed, inputs, rules.gamma(), 1), plain)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or not dist.is_available(), reason="torch has no gloo here")
def test_convolutions_of_shards_are_refused(tmp_path):
    torch.multiprocessing.spawn(convolved, (2, str(tmp_path / "store")), nprocs=2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or not dist.is_available(), reason="torch has no gloo here")
@pytest.mark.parametrize("count", [2, 4])
def test_sharded_weights_are_explained_as_whole_ones(count, tmp_path):
    torch.multiprocessing.spawn(explained_on_shards, (count, str(tmp_path / "store")), nprocs=count)
