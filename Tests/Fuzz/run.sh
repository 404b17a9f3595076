#!/usr/bin/env bash
# Feeds the parsers with hostile bytes (libFuzzer, guided by coverage, with the address sanitizer): first what is kept in Corpus, then what
# grows from it.
#
#   Tests/Fuzz/run.sh [seconds [target...]]       about so many seconds in all, 45 by default; all targets, or those named
#   Tests/Fuzz/run.sh --reproduce <target> <input>
#   Tests/Fuzz/run.sh --keep [target...]          merges Corpus and new finds (.build/fuzz/corpus) to the fewest inputs that cover the same edges
#
# Prints the seed of each target; status 1 when one has failed, with the path of the input and how to run it again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build="$root/.build/fuzz"
cd "$root"

# A trap is libFuzzer's to report, not the runtime's; leaks are looked for at the end of a run only.
export SWIFT_BACKTRACE=enable=no ASAN_OPTIONS=detect_leaks=0

log=$(mktemp)
trap 'rm -f "$log"' EXIT
PARLEY_FUZZ=1 swift build -c release --product parley-fuzz --scratch-path "$build" --sanitize fuzzer --sanitize address \
    -Xswiftc -sanitize=fuzzer,address -Xswiftc -enable-testing >"$log" 2>&1 || { grep -E 'error:' "$log" | head -20 || tail -5 "$log"; echo "error: the fuzzer does not build"; exit 1; }
fuzz() { PARLEY_FUZZ=$1 "$build/release/parley-fuzz" "${@:2}"; }
every_target=$(ls "$here/Corpus")
# Of two options `-sanitize` the compiler obeys the last, and the package manager's order changes from build to build: then nothing is counted.
fuzz json -runs=0 2>&1 | grep 'cov:' >/dev/null || { echo "error: the fuzzer is built without coverage"; exit 1; }

if [ "${1:-}" = --reproduce ]; then
    fuzz "$2" "$3" 2>&1 | grep -vE '^(INFO|Running)' | head -40
    exit "${PIPESTATUS[0]}"
fi

# What any target takes: bounded time, memory and length for one input.
limits=(-timeout=10 -rss_limit_mb=1024 -max_len=1024 -dict="$here/dictionary.txt" -print_final_stats=1 -verbosity=0)

if [ "${1:-}" = --keep ]; then
    shift
    for target in $([ $# -gt 0 ] && echo "$@" || echo "$every_target"); do
        merged=$(mktemp -d)
        mkdir -p "$here/Corpus/$target" "$build/corpus/$target"
        fuzz "$target" -set_cover_merge=1 -use_counters=0 -max_len=1024 "$merged" "$here/Corpus/$target" "$build/corpus/$target" >"$log" 2>&1 || tail -3 "$log"
        [ -n "$(ls "$merged")" ] || { echo "error: the merge of $target is empty"; exit 1; }
        rm -f "$here/Corpus/$target"/* && mv "$merged"/* "$here/Corpus/$target/" && rmdir "$merged"
        echo "$target: $(ls "$here/Corpus/$target" | wc -l) inputs, $(du -sb "$here/Corpus/$target" | cut -f1) bytes"
    done
    exit
fi

seconds=${1:-45}
[ $# -eq 0 ] || shift
targets=($([ $# -gt 0 ] && echo "$@" || echo "$every_target"))
seed=${PARLEY_SEED:-$(($(date +%s) % 1000000007))}
status=0
inputs=0
for target in "${targets[@]}"; do
    found="$build/corpus/$target"
    mkdir -p "$found" "$here/Corpus/$target" "$build/crashes"
    result=0
    # The time stands for what is new; the corpus is run whole, however long that takes.
    fuzz "$target" "${limits[@]}" -seed="$seed" -max_total_time=$(((seconds + ${#targets[@]} - 1) / ${#targets[@]})) \
        -artifact_prefix="$build/crashes/$target-" "$found" "$here/Corpus/$target" >"$log" 2>&1 || result=$?
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    inputs=$((inputs + ${executed:-0}))
    if [ "$result" -ne 0 ]; then
        status=1
        grep -m1 -E 'contradiction:|ERROR: (AddressSanitizer|libFuzzer)' "$log" | cut -c1-400 || true
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
        echo "failed: $target (PARLEY_SEED=$seed); again: Tests/Fuzz/run.sh --reproduce $target ${input#"$root"/}"
    else
        echo "fuzzed: $target, ${executed:-0} inputs (PARLEY_SEED=$seed)"
    fi
done
echo "$inputs inputs in ${#targets[@]} targets (PARLEY_SEED=$seed)"
exit "$status"
