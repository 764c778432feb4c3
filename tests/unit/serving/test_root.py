import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from penstock.serving.root import _METRICS_KEPT, _family, _node_urls, _scrape, _unknown


def test_an_unknown_model_and_an_unknown_path_are_told_apart():
    assert _unknown("/v1/models/nope/predict").code == "unknown_model"
    assert _unknown("/v1/models/nope").code == "unknown_path"
    assert _unknown("/favicon.ico").code == "unknown_path"


def test_a_path_of_any_text_can_be_answered():
    assert _unknown("/ä\ud800").message.isascii()


def test_only_serving_metrics_are_kept():
    assert _METRICS_KEPT.match(b'ray_penstock_predict_requests_total{code="200"} 1.0')
    assert _METRICS_KEPT.match(b"# HELP ray_serve_num_router_requests_total The number")
    assert not _METRICS_KEPT.match(b"ray_node_cpu_count 2.0")


def test_lines_of_one_metric_stand_together_behind_their_help():
    lines = [b"ray_serve_b 1", b"ray_serve_a_sum 2", b"# TYPE ray_serve_a histogram"]
    lines += [b'ray_serve_a_bucket{le="1"} 2', b"# HELP ray_serve_a What", b"ray_serve_a_count 2"]
    assert sorted(lines, key=_family) == [
        b"# HELP ray_serve_a What",
        b"# TYPE ray_serve_a histogram",
        b"ray_serve_a_sum 2",
        b'ray_serve_a_bucket{le="1"} 2',
        b"ray_serve_a_count 2",
        b"ray_serve_b 1",
    ]


class Page(BaseHTTPRequestHandler):
    """A node's metrics."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"# TYPE ray_serve_a gauge\nray_serve_a 1\nray_node_cpu_count 2\n")

    def log_message(self, *_arguments: object) -> None: ...


def test_a_node_that_does_not_answer_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch):
    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    ports = (server.server_port, 9)
    nodes = [
        {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": port}
        for port in ports
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    # A company's proxy knows no node.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    try:
        lines = _scrape(_node_urls()).decode().splitlines()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert lines == [
        "# TYPE ray_serve_a gauge",
        "ray_serve_a 1",
        "# TYPE ray_penstock_silent_nodes gauge",
        "ray_penstock_silent_nodes 1",
    ]
