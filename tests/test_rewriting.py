"""What a compiler is given in place of a graph: the same numbers, laid out chains innermost."""

import pytest
import torch
from torch import tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm.layout import chains_innermost, memory_order
from pyro_ebm.rewriting import SKINNY, rewritten

C = 32
DATA = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)
WIDE = torch.linspace(-1.0, 1.0, 3 * 40, dtype=torch.float64).reshape(3, 40)

FUNCTIONS = {
    "product with few rows": lambda z: z @ WIDE,
    "product with few columns": lambda z: (z @ WIDE).tanh() @ WIDE.T,
    "few rows by a product": lambda z: (WIDE @ (z @ WIDE).T).T,
    "rows by one matrix": lambda z: torch.bmm(z[:, None], WIDE.expand(len(z), -1, -1)),
    "one matrix by columns": lambda z: torch.bmm(WIDE.T.expand(len(z), -1, -1), z[:, :, None]),
    "matrices by matrices": lambda z: torch.bmm(z[:, None], z[:, :, None]),
    "bias": lambda z: torch.addmm(WIDE[0, :3], z, WIDE[:, :3]),
    "bias of a large product": lambda z: torch.addmm(WIDE[0], (z @ WIDE), WIDE.T @ WIDE),
    "silu": lambda z: torch.nn.functional.silu(z),
    "joined": lambda z: torch.cat([z.sin(), z[:, :1], z.cos()], -1),
    "joined before the last": lambda z: torch.cat([z[:, None], 2 * z[:, None]], 1),
    "stacked": lambda z: torch.stack([z, z.square()], 1),
    "cumulative sum": lambda z: z.cumsum(-1),
    "cumulative product": lambda z: z.cumprod(1),
    "met by data": lambda z: z[:, 0, None] * DATA,
    "met by data in two dimensions": lambda z: z[:, :, None] - DATA,
    "met by chains": lambda z: torch.logaddexp(z[:, :, None], z[:, None]),
}
LAID_OUT = [name for name in FUNCTIONS if name.split()[0] in ("joined", "stacked", "met")]


def both(name, z):
    graph = make_fx(FUNCTIONS[name])(z)
    return graph, rewritten(graph, [z])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("num_chains", [1, 3, C])
@pytest.mark.parametrize("innermost", [False, True])
def test_has_the_numbers_of_the_graph(name, num_chains, innermost):
    z = torch.randn(num_chains, 3)
    z = chains_innermost(z) if innermost else z
    graph, found = both(name, z)
    for x in (z, 2 * z + 1):
        torch.testing.assert_close(found(x), graph(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAID_OUT)
def test_lays_out_chains_innermost_what_says_nothing_of_its_layout(name):
    z = chains_innermost(torch.randn(C, 3))
    graph, found = both(name, z)
    assert memory_order(graph(z))[-1] != 0 or name == "met by chains"
    assert memory_order(found(z))[-1] == 0


@pytest.mark.parametrize("name", LAID_OUT)
@pytest.mark.parametrize("num_chains", [8, C])
def test_leaves_the_layout_alone_where_chains_are_outermost(name, num_chains):
    z = torch.randn(num_chains, 3)
    graph, found = both(name, z)
    assert found(z).stride() == graph(z).stride()


def multiplication(by):
    return lambda z: z @ by


def turned_multiplication(by):
    return lambda z: (by.T @ z.T).T


def test_products_stay_products_beyond_a_few_rows_and_columns():
    wide = torch.randn(SKINNY + 1, SKINNY + 1)
    z = torch.randn(C, SKINNY + 1)
    for by, expected in ((wide, 1), (wide[:, :SKINNY], 0), (wide[:, :1], 0)):
        for multiply in (multiplication, turned_multiplication):
            found = rewritten(make_fx(multiply(by))(z), [z])
            assert num_products(found) == expected


def num_products(graph):
    return sum(node.target == torch.ops.aten.mm.default for node in graph.graph.nodes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rows by one matrix", 0), ("one matrix by columns", 0), ("matrices by matrices", 1)],
)
def test_a_batch_of_products_with_one_matrix_is_one(name, expected):
    _, found = both(name, chains_innermost(torch.randn(C, 3)))
    batches = [n for n in found.graph.nodes if n.target == torch.ops.aten.bmm.default]
    assert len(batches) == expected


def test_the_parameters_stay_live():
    weight = torch.nn.Parameter(tensor([[1.0], [2.0], [3.0]]))
    z = torch.randn(C, 3)
    found = rewritten(make_fx(lambda z: z @ weight)(z), [z])
    with torch.no_grad():
        weight.mul_(-2.0)
        torch.testing.assert_close(found(z), z @ weight)
