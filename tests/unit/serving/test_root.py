from penstock.serving.root import _METRICS_KEPT, _family, _unknown


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
