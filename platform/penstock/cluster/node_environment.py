"""Prints what a cluster's node must export before `ray start`, as shell lines. Run as a module."""

import shlex
import sys
from pathlib import Path

from penstock.cluster import local, tokens
from penstock.cluster.ingress import serve_environment
from penstock.errors import ClusterError, PenstockError
from penstock.settings import Settings, load_settings


def node_environment(settings: Settings, token_path: Path) -> dict[str, str]:
    """Name the variables of a node: the token's place, the storage, and all of Serve's.

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
        **serve_environment(settings, folder / "i"),
    }


def main() -> None:
    """Print `export NAME=value` lines, or end with a message and an exit code that stops `&&`."""
    try:
        if len(sys.argv) != 2:
            raise ClusterError(f"got {sys.argv[1:]}", allowed="the path of the token file")
        variables = node_environment(load_settings(), Path(sys.argv[1]))
    except PenstockError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


if __name__ == "__main__":
    main()
