#!/usr/bin/env bash
# A Ray cluster on plain machines, over ssh: launch/ssh.sh up | down | status HOSTS
#
# HOSTS is a file with one machine per line: its ssh name and, if Ray would choose the wrong one, its IP address for the
# other machines. The first machine is the head; # starts a comment.
# Each machine has this repository in the same folder (or REPO), its packages (launch/setup.sh), and a shared folder for
# runs. The token in ~/.ray/auth_token is copied to each machine with mode 600. START_S (180) bounds each start. SSH is the
# command that reaches a machine. The environment variables of launch/node.sh are passed on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

REPO=${REPO:-$PWD}
START_S=${START_S:-180}
read -ra SSH <<<"${SSH:-ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3}"
TOKEN=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
hosts=() ips=()

say() { printf 'ssh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

read_hosts() {
    local host ip _
    [[ -r ${1:-} ]] || fail "usage: launch/ssh.sh up | down | status HOSTS, a file with one machine a line"
    while read -r host ip _ || [[ -n $host ]]; do
        if [[ -n $host ]]; then hosts+=("$host") ips+=("$ip"); fi
    done < <(sed 's/#.*//' "$1")
    ((${#hosts[@]})) || fail "$1 names no machine"
}

# on NUMBER COMMAND...: runs a command in the repository on that machine.
on() {
    local number=$1 name line
    shift
    line="cd $(printf '%q' "$REPO") &&"
    for name in RAY_PORT DASHBOARD_PORT DASHBOARD_HOST RAY_ARGS STOP_S NODE_STATE; do
        [[ -z ${!name:-} ]] || line+=" $name=$(printf '%q' "${!name}")"
    done
    line+=" START_S=$START_S${ips[$number]:+ NODE_IP=${ips[$number]}} $(printf '%q ' "$@")"
    timeout "$((START_S + 60))" "${SSH[@]}" "${hosts[$number]}" "$line"
}

# each FIRST FUNCTION: calls FUNCTION NUMBER in parallel for the machines from FIRST on; names those that failed.
each() {
    local first=$1 number bad=() pids=()
    for ((number = first; number < ${#hosts[@]}; number++)); do
        "$2" "$number" </dev/null &
        pids[number]=$!
    done
    for number in "${!pids[@]}"; do wait "${pids[$number]}" || bad+=("${hosts[$number]}"); done
    ((${#bad[@]} == 0)) || fail "$2 failed on: ${bad[*]}"
}

# The token travels on standard input, because every user of a machine can read command lines.
# shellcheck disable=SC2016  # it expands on the other machine
PUT_TOKEN='umask 077; mkdir -p ~/.ray; new=$(cat); file=~/.ray/auth_token
    if [ -s "$file" ] && [ "$(cat "$file")" != "$new" ]; then echo "$file holds another token" >&2; exit 1; fi
    printf %s "$new" >"$file"; chmod 600 "$file"'
prepare() {
    timeout 60 "${SSH[@]}" "${hosts[$1]}" "test -x $(printf '%q' "$REPO")/.venv/bin/ray" ||
        { say "${hosts[$1]}: cannot be reached, or $REPO has no packages (launch/setup.sh)"; return 1; }
    timeout 60 "${SSH[@]}" "${hosts[$1]}" "$PUT_TOKEN" <"$TOKEN"
}
join() { on "$1" launch/node.sh worker "$address"; }
stop() { on "$1" launch/node.sh stop; }
status() { on "$1" launch/node.sh status 2>&1 | sed "s|^|${hosts[$1]}: |"; }

up() {
    [[ -s $TOKEN ]] || (umask 077 && timeout 120 .venv/bin/ray get-auth-token --generate >/dev/null)
    each 0 prepare
    address=$(on 0 launch/node.sh head </dev/null) || fail "the head ${hosts[0]} did not start"
    each 1 join
    on 0 env RAY_AUTH_MODE=token .venv/bin/python launch/wait_for_nodes.py "$address" "${#hosts[@]}" "$START_S" </dev/null
    say "${#hosts[@]} nodes at $address. Jobs, through a tunnel:"
    local port=${DASHBOARD_PORT:-8265}
    printf '%s\n' "ssh -N -L $port:127.0.0.1:$port ${hosts[0]} &" \
        "make submit ADDRESS=http://127.0.0.1:$port EXPERIMENT=demo RUNS=/SHARED/FOLDER"
}

read_hosts "${2:-}"
case ${1:-} in
    up) up ;;
    down) each 0 stop ;;
    status) each 0 status ;;
    *) fail "usage: launch/ssh.sh up | down | status HOSTS" ;;
esac
