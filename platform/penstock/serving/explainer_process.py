"""The process that explains, beside its replica: rows come in by a pipe, explanations go out.

`python -m penstock.serving.explainer_process <file descriptor> <package folder> <digest>`

Each message is one JSON document. The first one out says whether it is ready; then each list of
rows has one answer, `{"explanations": …}` or `{"refused": …}`. It ends within a second of its
replica, however that came to die.
"""

import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.errors import PenstockError, RequestError
from penstock.registry.package import verify
from penstock.serving.shapley import Explainer
from penstock.settings import load_settings

_NICENESS = 19
"""The least that there is: whoever predicts goes first."""
_LOOK_S = 0.5


def main(arguments: list[str]) -> None:
    """Answer until the pipe is closed."""
    descriptor, folder, digest = arguments
    os.nice(_NICENESS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with Connection(int(descriptor)) as pipe:
        try:
            explainer = Explainer(verify(Path(folder), load_settings(), digest=digest))
        except (PenstockError, ImportError) as error:
            _send(pipe, {"failed": str(error)})
            return
        _send(pipe, {"is_exact": explainer.is_exact})
        while True:
            try:
                rows = orjson.loads(pipe.recv_bytes())
            except EOFError:
                return
            _send(pipe, _answer(explainer, rows))


def _end_with(parent: int) -> None:
    """End, in the middle of work too, when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(0)


def _answer(explainer: Explainer, rows: list[list[float | None]]) -> dict[str, Any]:
    try:
        return {"explanations": explainer.explain(np.array(rows, dtype=np.float64))}
    except RequestError as error:
        parts = {"code": error.code, "message": error.message, "path": error.path}
        return {"refused": {"status": error.status, **parts}}


def _send(pipe: Connection, document: dict[str, Any]) -> None:
    pipe.send_bytes(orjson.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1:])
