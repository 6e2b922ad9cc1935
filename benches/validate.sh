#!/usr/bin/env bash
# Compares the lab with a cluster on this machine: three regions, emulated distances, one node per region, three rounds, each
# with the costs as they are then. Usage: benches/validate.sh GLOBALFS OUT [geo3-fast] [geo3]. Without networks both. The machine
# should be idle; each takes ten to fifteen minutes (ROUNDS=1 in the environment: a third).
set -euo pipefail
# What was written before is not to be flushed meanwhile.
sync
globalfs=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
shift 2
[ $# -gt 0 ] || set -- geo3-fast geo3
data=$(mktemp -d "$out/cluster.XXXXXX")
up=
end() {
    [ -z "$up" ] || { kill -TERM "$up" 2>/dev/null && wait "$up" || true; }
    up=
    rm -rf "$data"
}
trap end EXIT

compare() {
    local wan=$1 mnt=$data/$1/mnt
    : >"$out/up.json"
    "$globalfs" up --json --regions us,eu,ap --wan "$wan" --data "$data/$wan" >"$out/up.json" 2>"$out/up.log" &
    up=$!
    for _ in $(seq 120); do
        [ ! -s "$out/up.json" ] || break
        kill -0 "$up"
        sleep 0.5
    done
    "$globalfs" bench geo --real "$mnt/us,$mnt/eu,$mnt/ap" --rtt "$wan" --voters 1 --duration 2s \
        --rounds "${ROUNDS:-3}" --calibrate --out "$out/$wan" | tee "$out/$wan.txt"
    kill -TERM "$up"
    wait "$up" || true
    up=
}

for wan in "$@"; do
    compare "$wan"
done
