import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mtil.training.averaging import MovingAverage


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def holding(self, weight: list[float], mean: float, count: int) -> "_Network":
        values = {"weight": torch.tensor(weight), "mean": torch.tensor([mean])}
        values["count"] = torch.tensor(count)
        self.load_state_dict(values)
        return self


def _state(average: MovingAverage) -> tuple[list[float], float, int]:
    network = average.module
    assert isinstance(network, _Network)
    return network.weight.tolist(), float(network.mean), int(network.count)


def test_an_average_worked_by_hand() -> None:
    average = MovingAverage(_Network(), 0.5)
    average.update(_Network().holding([1.0, 2.0], 0.0, 3))
    assert _state(average) == ([1.0, 2.0], 0.0, 3)  # the first step copies the values
    average.update(_Network().holding([3.0, 2.0], 11.0, 8))
    weight, mean, count = _state(average)
    assert weight == pytest.approx([1 + 2 * 9 / 11, 2.0])  # old share (1 + 1) / (10 + 1) = 2 / 11
    assert mean == pytest.approx(9.0)
    assert count == 8
    average.load_state_dict({**average.state_dict(), "n_averaged": torch.tensor(1000)})
    average.update(_Network().holding([0.0, 2.0], 0.0, 9))
    assert _state(average)[0] == pytest.approx([(1 + 18 / 11) / 2, 2.0])  # old share 1 / 2
    assert int(average.n_averaged) == 1001


def test_late_averages_are_those_of_pytorch() -> None:
    ours = MovingAverage(_Network(), 0.9)
    theirs = AveragedModel(_Network(), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)  # type: ignore[no-untyped-call]
    late = {"n_averaged": torch.tensor(1000)}
    ours.load_state_dict({**ours.state_dict(), **late})
    theirs.load_state_dict({**theirs.state_dict(), **late})
    for step in range(3):
        network = _Network().holding([step + 1.0, -step], step / 2, step)
        ours.update(network)
        theirs.update_parameters(network)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert isinstance(theirs.module, _Network)
    assert _state(ours)[0] == pytest.approx(theirs.module.weight.tolist())
    assert _state(ours)[1] == pytest.approx(float(theirs.module.mean))


def test_an_average_does_not_follow_the_network_by_itself() -> None:
    network = _Network()
    average = MovingAverage(network, 0.9)
    network.holding([5.0, 5.0], 5.0, 5)
    assert _state(average) == ([0.0, 0.0], 0.0, 0)
