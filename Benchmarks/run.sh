#!/usr/bin/env bash
# Benchmarks of Parley beside other systems in the same run: one question a file.
#
#     Benchmarks/run.sh [--tiny] [names]      appends batches latency steps tokens interrupts waiting audit fanout catchup stalled idle cold drain
#
# Installs what is missing, builds a release, and starts every server itself, on free ports and in a temporary folder that goes away.
# --tiny runs each for a second or two without the peers, to see that the benchmarks still work. SECONDS_EACH and ROUNDS change
# how long each is measured, BENCHMARK_FOLDER where the data lies: a disk, not memory, or the syncs cost nothing.
set -euo pipefail
source "$(dirname "$0")/../Scripts/setup.sh"
cd "$root"

tiny=
all=(appends batches latency steps tokens interrupts waiting audit fanout catchup stalled idle cold drain)
names=()
for word in "$@"; do
    case $word in
        --tiny) tiny=1 ;;
        *) [[ " ${all[*]} " == *" $word "* ]] || fail "unknown benchmark '$word'; expected --tiny, ${all[*]}"
            names+=("$word") ;;
    esac
done
[ ${#names[@]} -gt 0 ] || names=("${all[@]}")

# DBOS and LangGraph, in a folder of their own.
need_python_peers() {
    need_packages python3-venv
    local venv="$root/.venv-bench"
    python="$venv/bin/python"
    [ -e "$venv/.installed" ] && return
    say "installing DBOS and LangGraph"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check dbos psycopg[binary] langgraph langgraph-checkpoint-sqlite
    touch "$venv/.installed"
}

need_swift
[ "$tiny" ] || [[ "${names[*]}" =~ ^(audit|drain|audit\ drain)$ ]] || need_packages redis-server redis-tools postgresql postgresql-client strace python3
bin=${PARLEY_BIN:-}
if [ -z "$bin" ]; then
    say "building"
    for product in parley parley-load parley-bench-agents; do swift build -c release --static-swift-stdlib --product $product >&2; done
    bin=$(swift build -c release --static-swift-stdlib --show-bin-path)
fi

# Every live reader and every connection of the load is a descriptor.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
for name in "${names[@]}"; do
    (
        source Benchmarks/servers.sh
        echo "== $name: $(sed -n '1s/^# //p' "Benchmarks/$name.sh")"
        print_machine
        source "Benchmarks/$name.sh"
    )
done
