#!/usr/bin/env bash
# Measures this machine, then compares the lab with a cluster on it: three regions, emulated distances, one node per region.
# Usage: benches/validate.sh GLOBALFS OUT. The machine should be idle; it takes about eight minutes.
set -euo pipefail
globalfs=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
data=$(mktemp -d "$out/cluster.XXXXXX")
up=
end() {
    [ -z "$up" ] || { kill -TERM "$up" 2>/dev/null && wait "$up" || true; }
    up=
    rm -rf "$data"
}
trap end EXIT

"$globalfs" bench calibrate --disk "$out" --out "$out/calibration.toml"
for wan in geo3-fast geo3; do
    : >"$out/up.json"
    "$globalfs" up --json --regions us,eu,ap --wan "$wan" --data "$data/$wan" >"$out/up.json" 2>"$out/up.log" &
    up=$!
    for _ in $(seq 120); do
        [ ! -s "$out/up.json" ] || break
        kill -0 "$up"
        sleep 0.5
    done
    mnt=$data/$wan/mnt
    "$globalfs" bench geo --real "$mnt/us,$mnt/eu,$mnt/ap" --rtt "$wan" --voters 1 --duration 2s \
        --calibration "$out/calibration.toml" --out "$out/$wan" | tee "$out/$wan.txt"
    kill -TERM "$up"
    wait "$up" || true
    up=
done
