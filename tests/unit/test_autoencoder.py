import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refine.models.autoencoder import Autoencoder, DistinctRows, distinct_rows

pytestmark = pytest.mark.usefixtures("_double")

N_ROWS, N_COLUMNS, HIDDEN, DIMENSION = 8, 10, 7, 3

# Rows 1, 4 and 6 have the same one entry, row 5 another one, rows 0 and 3 the same two.
MATRIX = torch.zeros(N_ROWS, N_COLUMNS, dtype=torch.int64)
MATRIX[[1, 4, 6], 2] = 1
MATRIX[5, 9] = 1
MATRIX[[0, 0, 3, 3], [2, 7, 2, 7]] = 1
EMPTY = torch.zeros_like(MATRIX)
FULL = torch.ones_like(MATRIX)


def split(*matrices: Tensor) -> list[DistinctRows]:
    entries = torch.stack(matrices).nonzero()
    generator = torch.Generator().manual_seed(0)
    entries = entries[torch.randperm(len(entries), generator=generator)]
    entries = entries[entries[:, 0].argsort(stable=True)]
    return list(distinct_rows(*entries.T, len(matrices), (N_ROWS, N_COLUMNS)))


def test_every_matrix_is_its_distinct_rows() -> None:
    """The matrices before and after ones without an entry or without an empty row, too."""
    matrices = [EMPTY, MATRIX, EMPTY, FULL, MATRIX.flip(0), EMPTY]
    found = split(*matrices)
    assert len(found) == len(matrices)
    for matrix, x in zip(matrices, found, strict=True):
        distinct = torch.zeros(len(x.starts), N_COLUMNS, dtype=torch.int64)
        distinct[x.places, x.columns] = 1
        assert torch.equal(distinct[x.of_row], matrix)
        assert distinct.sum() == len(x.columns)
        assert distinct[-1].sum() == 0
        assert (distinct[:-1].sum(1) > 0).all()
        ends = torch.cat([x.starts[1:], torch.tensor([len(x.columns)])])
        assert torch.equal(x.places, torch.arange(len(x.starts)).repeat_interleave(ends - x.starts))
        counts = torch.bincount(x.of_row, minlength=len(x.starts))
        assert torch.equal(x.weights, counts.to(torch.float64))


def test_rows_with_the_same_single_entry_are_one() -> None:
    (x,) = split(MATRIX)
    assert len(x.starts) == 5
    assert x.of_row[1] == x.of_row[4] == x.of_row[6]
    assert len({int(place) for place in x.of_row[[1, 5, 0, 3, 2]]}) == 5
    assert x.of_row[2] == x.of_row[7] == 4


def dense(model: Autoencoder, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """H and the reconstruction loss as the paper writes them, with every row laid out."""
    x = matrix.to(torch.float64)
    hidden = torch.relu(x @ model.first_weight + model.first_bias)
    codes = hidden @ model.to_code.weight.T + model.to_code.bias
    hidden = torch.relu(codes @ model.from_code.weight.T + model.from_code.bias)
    reconstruction = torch.sigmoid(hidden @ model.last.weight.T + model.last.bias)
    return codes, F.binary_cross_entropy(reconstruction, x)


@pytest.mark.parametrize("matrix", [MATRIX, EMPTY, FULL])
def test_loss_and_gradient_equal_those_of_the_dense_form(matrix: Tensor) -> None:
    model = Autoencoder(N_COLUMNS, HIDDEN, DIMENSION, torch.Generator().manual_seed(1))
    targets = torch.rand(N_ROWS, DIMENSION, generator=torch.Generator().manual_seed(2))
    targets.requires_grad_()
    variables = [targets, *model.parameters()]
    (x,) = split(matrix)

    codes = model.codes(x)
    loss = model.reconstruction_loss(codes, x)
    found = torch.autograd.grad(
        3 * loss + F.mse_loss(targets, F.embedding(x.of_row, codes)), variables
    )
    dense_codes, dense_loss = dense(model, matrix)
    expected = torch.autograd.grad(3 * dense_loss + F.mse_loss(targets, dense_codes), variables)

    torch.testing.assert_close(codes[x.of_row], dense_codes, rtol=0, atol=1e-14)
    torch.testing.assert_close(loss, dense_loss, rtol=0, atol=1e-14)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_a_large_logit_costs_itself_and_not_infinity() -> None:
    model = Autoencoder(N_COLUMNS, HIDDEN, DIMENSION, torch.Generator().manual_seed(1))
    model.last.weight.data.zero_()
    model.last.bias.data.fill_(1000.0)
    (x,) = split(MATRIX)
    loss = model.reconstruction_loss(model.codes(x), x).detach()
    zeros = (N_ROWS * N_COLUMNS - int(MATRIX.sum())) / (N_ROWS * N_COLUMNS)
    assert float(loss) == pytest.approx(1000 * zeros)


def test_weights_are_xavier_uniform_and_biases_as_in_pytorch() -> None:
    first, again, other = (
        Autoencoder(500, 300, 40, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    for (name, parameter), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(parameter, same)
        assert not torch.equal(parameter, different)
        if parameter.dim() == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
        else:
            inputs = {"first_bias": 500, "to_code.bias": 300, "from_code.bias": 40}
            bound = inputs.get(name, 300) ** -0.5
        assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound
        assert float(parameter.detach().mean()) == pytest.approx(0, abs=0.2 * bound)
