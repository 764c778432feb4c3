import json

import pytest
import structlog

from penstock import logs


class TestRedact:
    def test_hides_the_password_of_a_url_and_nothing_else(self):
        text = "cannot reach postgresql://ml:s3cr3t@db:5432/mlflow, see http://127.0.0.1:8265/jobs"
        assert logs.redact(text) == (
            "cannot reach postgresql://ml:***@db:5432/mlflow, see http://127.0.0.1:8265/jobs"
        )


class TestConfigure:
    def test_logs_go_to_stderr_and_carry_no_password(self, capsys: pytest.CaptureFixture[str]):
        logs.configure(as_json=True)
        structlog.get_logger().info("connected", url="redis://u:hush@h:1")
        out, err = capsys.readouterr()
        assert out == ""
        assert "hush" not in err
        assert json.loads(err)["url"] == "redis://u:***@h:1"
        structlog.reset_defaults()
