"""Prints what a cluster's node must export before `ray start`, as shell lines. Run as a module.

Its arguments: the path of the token file, and `--head` on the head.
"""

import shlex
import sys
from pathlib import Path

from penstock.cluster import head_memory, local, tokens
from penstock.cluster.ingress import serve_environment
from penstock.errors import ClusterError, PenstockError
from penstock.settings import Settings, load_settings


def node_environment(
    settings: Settings, token_path: Path, *, is_head: bool = False
) -> dict[str, str]:
    """Name the variables of a node: the token's place, the storage, its head's memory, and Serve's.

    Raises:
        ClusterError: the token is missing, or others can read it: the node must not start open.
    """
    tokens.read(token_path)
    if not tokens.is_private(token_path):
        raise ClusterError(
            f"the token {token_path} can be read by others", next_step=f"chmod 600 {token_path}"
        )
    folder = local.make_private(local.temp_dir(settings))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        **settings.node_environment(),
        **head_memory.environment(settings, is_head=is_head),
        **serve_environment(settings, folder / "i"),
    }


def main() -> None:
    """Print `export NAME=value` lines, or end with a message and an exit code that stops `&&`."""
    try:
        arguments = sys.argv[1:]
        is_head = arguments[1:] == ["--head"]
        if len(arguments) != 1 + is_head:
            raise ClusterError(
                f"got {arguments}", allowed="the path of the token file, and --head on the head"
            )
        settings = load_settings()
        risk = head_memory.check(settings) if is_head else None
        variables = node_environment(settings, Path(arguments[0]), is_head=is_head)
    except PenstockError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    if risk is not None:
        sys.stderr.write(f"warning: {risk}. Read docs/cluster.md, When the head dies\n")
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


if __name__ == "__main__":
    main()
