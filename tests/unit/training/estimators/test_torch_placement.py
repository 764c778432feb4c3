"""Rows lie as near to the device as they have room, and the record says why."""

from penstock.training.estimators.torch_placement import Memory, place_rows


def test_rows_that_fit_lie_on_the_device():
    placed = place_rows(1_000_000, 15, Memory(device="NVIDIA H200", device_bytes=140 * 10**9))
    assert placed.where == "on the device"
    assert placed.reason == (
        "1,000,000 rows x 15 features take 64.0 MB; of 140,000.0 MB free on NVIDIA H200 rows may "
        "take 50%"
    )


def test_rows_that_leave_no_room_for_the_net_stay_in_host_memory():
    memory = Memory(device="NVIDIA H200", device_bytes=100 * 10**6)
    assert place_rows(781_250, 15, memory).where == "on the device"
    placed = place_rows(781_251, 15, memory)
    assert placed.where == "in host memory"
    assert "more than 50% of 100.0 MB on NVIDIA H200" in placed.reason


def test_mapped_rows_that_have_no_room_stay_in_their_file():
    memory = Memory(device="cpu", device_bytes=100 * 10**6)
    assert place_rows(781_251, 15, memory, is_mapped=True).where == "in a file"
    assert place_rows(781_250, 15, memory, is_mapped=True).where == "on the device"
