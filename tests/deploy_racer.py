"""Deploys the versions that it reads from its input, a line each, and says how each one ended."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.registry.versions import resolve
from penstock.serving import deploy as deploying
from penstock.settings import Settings


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    settings, model = Settings.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2]
    if sys.argv[3] == "unguarded":
        go_on = deploying.end_left_rollout

        def wait_and_go_on(*arguments: Any) -> None:
            # The others have begun by then, where nothing keeps them from it.
            time.sleep(3)
            go_on(*arguments)

        deploying.held = lambda *_: contextlib.nullcontext()
        deploying.end_left_rollout = wait_and_go_on
    say("ready")
    for line in sys.stdin:
        try:
            deploying.deploy(settings, resolve(settings, model, int(line)), report=lambda _: None)
            say("0")
        except PenstockError as error:
            say(str(error.exit_code))


if __name__ == "__main__":
    main()
