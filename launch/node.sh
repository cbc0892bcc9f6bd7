#!/usr/bin/env bash
# One Ray node on this machine, with token authentication. It stops only a node that it started.
#
#   launch/node.sh head                  starts the head and prints the address for workers
#   launch/node.sh worker HOST:PORT      joins that head, given its token
#   launch/node.sh stop                  stops the node
#   launch/node.sh status                exit code 0 if it runs
#
# Environment: RAY_PORT (6379), DASHBOARD_PORT (8265), DASHBOARD_HOST (127.0.0.1), NODE_IP (the address for other nodes),
# START_S (120), STOP_S (60), RAY_ARGS (more arguments of `ray start`), NODE_STATE (folder for its log and pid)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STATE=${NODE_STATE:-${TMPDIR:-/tmp}/expo_ray_node_$(id -u)}
TOKEN=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export RAY_AUTH_MODE=token PATH=$PWD/.venv/bin:$PATH
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=${RAY_DASHBOARD_STARTUP_TIMEOUT_S:-${START_S:-120}} # Ray's own: 60
export RAY_agent_register_timeout_ms=${RAY_agent_register_timeout_ms:-90000} # Ray's own: 15000, too few for busy cores

say() { printf 'node: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

pid_of_node() {
    local pid
    pid=$(cat "$STATE/pid" 2>/dev/null) || return 1
    # Another process may have this pid by now.
    [[ "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)" == *"ray start "* ]] && echo "$pid"
}

need_token() {
    if [[ -n ${RAY_AUTH_TOKEN:-} || -s $TOKEN ]]; then return; fi
    [[ $1 == head ]] || fail "no token: put the head's into RAY_AUTH_TOKEN, or into $TOKEN with mode 600"
    [[ -z ${RAY_AUTH_TOKEN_PATH:-} ]] || fail "RAY_AUTH_TOKEN_PATH=$TOKEN holds no token"
    (umask 077 && timeout 120 ray get-auth-token --generate >/dev/null) # Ray's own mode lets others read it
}

start() {
    local kind=$1 pid deadline=$((SECONDS + ${START_S:-120})) more=()
    shift
    [[ -x .venv/bin/ray ]] || fail "$PWD/.venv has no Ray: run launch/setup.sh"
    (umask 077 && mkdir -p "$STATE")
    [[ -O $STATE ]] || fail "$STATE belongs to another user: set NODE_STATE"
    if pid=$(pid_of_node); then fail "a node runs already, process $pid: launch/node.sh stop"; fi
    need_token "$kind"
    read -ra more <<<"${RAY_ARGS:-}"
    [[ -z ${NODE_IP:-} ]] || more+=("--node-ip-address=$NODE_IP")
    setsid nohup ray start --block --disable-usage-stats "$@" "${more[@]}" >"$STATE/ray.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$STATE/pid"
    until grep -q 'Ray runtime started' "$STATE/ray.log"; do
        if ! kill -0 "$pid" 2>/dev/null; then fail "Ray did not start: $(tail -n 3 "$STATE/ray.log")"; fi
        if ((SECONDS >= deadline)); then
            stop
            fail "Ray did not start within ${START_S:-120} s; see $STATE/ray.log"
        fi
        sleep 0.5
    done
}

head_address() {
    local ip=${NODE_IP:-}
    ip=${ip:-$(sed -n 's/.*Local node IP: *\([0-9a-fA-F.:]*\).*/\1/p' "$STATE/ray.log" | head -n 1)}
    echo "${ip:?the log names no address}:${RAY_PORT:-6379}"
}

stop() {
    local pid deadline=$((SECONDS + ${STOP_S:-60}))
    if ! pid=$(pid_of_node); then
        say "no node was started here"
        return
    fi
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= deadline)); then
            say "it did not stop within ${STOP_S:-60} s: killed"
            kill -KILL -- "-$pid"
            break
        fi
        sleep 0.5
    done
    rm -f "$STATE/pid"
}

case ${1:-} in
    head)
        start head --head --port="${RAY_PORT:-6379}" --dashboard-port="${DASHBOARD_PORT:-8265}" \
            --dashboard-host="${DASHBOARD_HOST:-127.0.0.1}" --include-dashboard=true
        head_address ;;
    worker)
        start worker --address="${2:?HOST:PORT of the head}" ;;
    stop) stop ;;
    status)
        pid=$(pid_of_node) || fail "no node was started here"
        say "runs as process $pid, log $STATE/ray.log" ;;
    *) fail "usage: launch/node.sh head | worker HOST:PORT | stop | status" ;;
esac
