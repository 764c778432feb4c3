import socket
from collections.abc import Iterator

import pytest

from penstock.cluster import ports
from penstock.errors import ClusterError


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield server.getsockname()[1]


class TestChoose:
    def test_a_port_that_somebody_listens_on_is_passed_over(self, listener):
        assert not ports.is_free(listener)
        assert ports.choose(listener) > listener

    def test_a_port_promised_before_is_passed_over(self, listener):
        first = ports.choose(listener)
        assert ports.choose(listener, taken={first}) > first

    def test_a_span_is_free_as_a_whole(self, listener):
        begin = listener - 2
        chosen = ports.choose(begin, span=4)
        assert listener not in range(chosen, chosen + 4)

    def test_where_nothing_is_free_it_says_what_to_set(self):
        class Everything:
            def __contains__(self, port: object) -> bool:
                return True

        with pytest.raises(ClusterError, match=r"no free port from 30000 .*ray\.dashboard_port"):
            ports.choose(30000, taken=Everything())


def test_answers_tells_a_listener_from_silence(listener):
    assert ports.answers("127.0.0.1", listener)
    with socket.socket() as bound_but_silent:
        bound_but_silent.bind(("127.0.0.1", 0))
        assert not ports.answers("127.0.0.1", bound_but_silent.getsockname()[1])
