from datetime import UTC, datetime

from penstock.cluster import status

NOW = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)
BEGAN_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)


def node(ip: str, **changes: object) -> dict:
    facts = {
        "node_id": ip,
        "node_ip": ip,
        "is_head_node": False,
        "state": "ALIVE",
        "resources_total": {"CPU": 8.0, "memory": 2.0**30},
    }
    return facts | changes


def test_the_head_stands_first_and_the_dead_last():
    answer = [
        node("10.0.0.3", state="DEAD", resources_total=None),
        node("10.0.0.4"),
        node("10.0.0.9", is_head_node=True),
    ]
    nodes = status.read_nodes({"data": {"result": {"result": answer}}})
    assert [n.ip for n in nodes] == ["10.0.0.9", "10.0.0.4", "10.0.0.3"]
    assert (nodes[1].num_cpus, nodes[1].memory_bytes) == (8.0, 1 << 30)
    assert nodes[2].num_cpus == 0


def test_jobs_are_the_submitted_ones_newest_first():
    common = {"status": "RUNNING", "entrypoint": "python x.py", "end_time": None}
    answer = [
        {"submission_id": "old", "start_time": BEGAN_MS, **common, "end_time": BEGAN_MS + 2500},
        {"submission_id": "new", "start_time": BEGAN_MS + 1000, **common},
        {"submission_id": None, "start_time": BEGAN_MS + 2000, **common},
    ]
    jobs = status.read_jobs(answer, now=NOW)
    assert [(j.submission_id, j.runtime_s) for j in jobs] == [("new", 9.0), ("old", 2.5)]


def test_an_application_shows_its_url_and_its_living_replicas():
    answer = {
        "applications": {
            "spills": {
                "status": "DEPLOYING",
                "route_prefix": "/v1/models/spills",
                "message": None,
                "deployments": {
                    "a": {"replicas": [{"state": "RUNNING"}, {"state": "STARTING"}]},
                    "b": {"replicas": [{"state": "RUNNING"}]},
                },
            }
        }
    }
    (app,) = status.read_applications(answer, "http://127.0.0.1:8000")
    assert app.url == "http://127.0.0.1:8000/v1/models/spills"
    assert app.num_running_replicas == 2
