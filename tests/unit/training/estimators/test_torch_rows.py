"""Batches: every row once, shared out whole, the same wherever the rows lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.training.estimators import torch_rows
from penstock.training.estimators.torch_rows import Order, Seat, hold

ROWS = st.integers(1, 60)


def numbers_of(order, epoch=0):
    return order.epoch(epoch).tolist()


class TestOrder:
    def test_an_epoch_is_the_same_after_a_restart_and_differs_from_the_one_before(self):
        order = Order(num_rows=50, batch_size=8)
        assert numbers_of(order, 3) == numbers_of(Order(num_rows=50, batch_size=8), 3)
        assert numbers_of(order, 3) != numbers_of(order, 2)
        assert numbers_of(order) != numbers_of(Order(num_rows=50, batch_size=8, seed=1))

    @settings(deadline=None)
    @given(num_rows=ROWS)
    def test_every_row_comes_once_an_epoch(self, num_rows):
        order = Order(num_rows=num_rows, batch_size=4)
        assert sorted(numbers_of(order)) == list(range(num_rows))

    def test_more_rows_than_are_shuffled_as_one_come_once_and_a_window_from_few_stretches(
        self, monkeypatch
    ):
        monkeypatch.setattr(torch_rows, "_ROWS_PER_BLOCK", 32)
        monkeypatch.setattr(torch_rows, "_BLOCKS_PER_WINDOW", 64)
        num_rows, window = 32 * 64 * 3 + 5, 32 * 64
        order = Order(num_rows=num_rows, batch_size=256)
        first = order.epoch(0)
        assert sorted(first.tolist()) == list(range(num_rows))
        assert torch.equal(first, order.epoch(0))
        assert not torch.equal(first, order.epoch(1))
        # Of a file few stretches are read for one window, from all over it, and no batch of it
        # comes from one stretch alone.
        blocks = first[:window] // 32
        assert len(blocks.unique()) in (64, 65)
        assert blocks.max() > 128
        assert len(blocks[:256].unique()) > 50

    def test_balanced_draws_are_half_positive_and_mixed(self):
        positives = torch.arange(1000) % 50 == 0
        drawn = Order(num_rows=1000, batch_size=10, positives=positives).epoch(0)
        assert int(positives[drawn].sum()) == 500
        # Mixed: no stretch of the epoch is without one of the classes.
        assert all(0 < int(positives[part].sum()) < 100 for part in drawn.split(100))


@pytest.mark.parametrize("where", ["on the device", "in host memory", "in a file"])
class TestBatches:
    @settings(deadline=None, max_examples=30)
    @given(num_rows=ROWS, batch_size=st.integers(1, 20), world=st.integers(1, 4))
    def test_workers_have_each_row_of_a_batch_once(self, where, num_rows, batch_size, world):
        inputs = torch.arange(num_rows, dtype=torch.float32).reshape(-1, 1)
        order = Order(num_rows=num_rows, batch_size=batch_size)
        seats = [Seat(rank=rank, world=world) for rank in range(world)]
        rows = [hold(where, inputs, inputs[:, 0] * 2, order=order, seat=seat) for seat in seats]
        epochs = [list(each.batches(1, 0)) for each in rows]
        expected = order.epoch(1).split(batch_size)
        assert rows[0].num_steps == len(expected)
        for step, shares in enumerate(zip(*epochs, strict=True)):
            own = torch.cat([share.inputs[:, 0] for share in shares]).long()
            assert sorted(own.tolist()) == sorted(expected[step].tolist())
            assert {share.num_rows for share in shares} == {len(own)}
            for share, each in zip(shares, rows, strict=True):
                assert torch.equal(share.targets, share.inputs[:, 0] * 2)
                assert torch.equal(each.numbers(1, step).float(), share.inputs[:, 0])

    def test_the_rest_of_an_epoch_is_its_own_rest(self, where):
        inputs = torch.arange(20.0).reshape(-1, 1)
        order = Order(num_rows=20, batch_size=3)
        rows = hold(where, inputs, inputs[:, 0], order=order, seat=Seat())
        whole, rest = list(rows.batches(2, 0)), list(rows.batches(2, 4))
        assert [b.targets.tolist() for b in rest] == [b.targets.tolist() for b in whole[4:]]

    def test_an_epoch_that_is_given_up_leaves_nothing_running(self, where):
        inputs = torch.arange(20.0).reshape(-1, 1)
        order = Order(num_rows=20, batch_size=3)
        batches = hold(where, inputs, inputs[:, 0], order=order, seat=Seat()).batches(0, 0)
        next(batches)
        batches.close()
