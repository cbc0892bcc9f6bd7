#!/usr/bin/env bash
# A Ray cluster on this machine, for `make submit`: launch/local.sh start | stop | status
# It listens on 127.0.0.1 only and requires a token. The environment variables of launch/node.sh apply.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export NODE_IP=127.0.0.1
case ${1:-} in
    start)
        launch/node.sh head >/dev/null
        url=http://127.0.0.1:${DASHBOARD_PORT:-8265}
        printf '%s\n' "Ray is ready. A job:  make submit ADDRESS=$url EXPERIMENT=demo RUNS=$PWD/runs" \
            "Its dashboard:        $url  (the token: .venv/bin/ray get-auth-token)" \
            "To stop it:           launch/local.sh stop" ;;
    stop | status) exec launch/node.sh "$1" ;;
    *)
        echo "usage: launch/local.sh start | stop | status" >&2
        exit 2 ;;
esac
