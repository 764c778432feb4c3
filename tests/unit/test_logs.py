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

    @pytest.mark.parametrize("password", ["a/b", "a#b", "a?b", "a@b", "a:b"])
    def test_a_password_that_should_have_been_encoded_is_hidden_too(self, password):
        assert logs.redact(f"no postgresql://ml:{password}@db/x") == "no postgresql://ml:***@db/x"

    def test_hides_the_secrets_among_options(self):
        assert logs.redact("redis at h:1,password=hush,ssl=true") == (
            "redis at h:1,password=***,ssl=true"
        )
        assert logs.redact("postgresql://h/x?sslmode=on&sslpassword=hush") == (
            "postgresql://h/x?sslmode=on&sslpassword=***"
        )


class TestShownUrl:
    def test_shows_all_but_the_password(self):
        assert logs.shown_url("postgresql://ml:a /b@db:5432/x?password=hush&sslmode=on") == (
            "postgresql://ml:***@db:5432/x?password=***&sslmode=on"
        )

    def test_of_what_is_no_url_only_the_scheme_is_shown(self):
        assert logs.shown_url("postgresql://ml:a@b:c@db/x") == "postgresql:…"


class TestConfigure:
    def test_logs_go_to_stderr_and_carry_no_password(self, capsys: pytest.CaptureFixture[str]):
        logs.configure(as_json=True)
        structlog.get_logger().info("connected", url="redis://u:hush@h:1")
        out, err = capsys.readouterr()
        assert out == ""
        assert "hush" not in err
        assert json.loads(err)["url"] == "redis://u:***@h:1"
        structlog.reset_defaults()
