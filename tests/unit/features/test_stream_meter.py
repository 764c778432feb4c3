from penstock.features.stream_meter import Meter, percentiles
from penstock.features.stream_table import Flushed


class TestMeter:
    def test_it_tells_rate_delays_and_what_landed(self):
        told = []
        meter = Meter(
            "shop.orders", lambda step, done, total=None, unit="": told.append((step, done))
        )
        meter.online(90, 0.010)
        meter.online(10, 0.500)
        meter.flushed(
            Flushed(flush=1, version=7, num_read=100, num_kept=98, num_quarantined=2, positions={})
        )
        meter.tell(1_234)
        [(step, done)] = told
        assert done == 100
        assert "online after 10 ms (99 %: 500 ms)" in step
        assert "1,234 waiting, version 7 has 98 of them, quarantine 2" in step
        assert not meter.is_due()

    def test_every_event_weighs_the_same(self):
        assert percentiles([(0.3, 1), (0.1, 98), (0.2, 1)], (0.5, 0.99, 1.0)) == [0.1, 0.2, 0.3]
