#!/usr/bin/env bash
# Shows that the tests can fail: breaks the program in one place at a time, in a copy of this checkout, and runs the one test that must notice.
#
#   Scripts/mutations.sh [name...]     all mutations, or those named
#
# The checkout itself is left alone. Ends with a table; status 1 when a mutation survived, or could not be tried.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
copy=$(mktemp -d "${TMPDIR:-/tmp}/parley-mutations-XXXXXX")
trap 'rm -rf "$copy"' EXIT
log="$copy/output"

# name | file | what sed does to it | the test that must fail
mutations=(
    "no sync|Sources/ParleyLog/RocksDatabase.swift|s/rocksdb_writeoptions_set_sync(writing, 1)/rocksdb_writeoptions_set_sync(writing, 0)/|every commit syncs the write-ahead log once"
    "no look at the end of the write-ahead log|Sources/ParleyLog/RocksLog.swift|/^ *try RocksLog.examine(path)\$/d|a bit that changes in the write-ahead log is reported"
    "no list of the write-ahead log's files|Sources/ParleyLog/RocksOptions.swift|s/_in_manifest=true/_in_manifest=false/|a hole in the write-ahead log is damage"
    "no epoch check|Sources/ParleyChannels/Commands/Append.swift|/^ *try checkEpoch(channel)\$/d|a stale owner appends nothing"
    "no producer check|Sources/ParleyChannels/Commands/Append.swift|s/= try checkProducer(channel, &stage)/= producer.map { (state: ProducerState(epoch: \$0.epoch, sequence: \$0.sequence), isDuplicate: false) }/|a producer's repetition is in the log once"
    "last text apart from the result|Sources/ParleyAgents/Machine/AgentMachine+Steps.swift|/mutating func complete(/,/^    }/s/(last.map { \[\$0\] } ?? \[\]) + \[entry\]/[entry]/; /mutating func complete(/,/^    }/s/^        writeEnd(end)\$/        if let last { write(AgentBatch(entries: [last], epoch: .holds(epoch))) }; writeEnd(end)/|no crash leaves the whole text in the log"
    "last text not held back|Sources/ParleyAgents/Runtime/ModelAttempt.swift|s/^        state.last.held = delta\$/        if let delta { append(self, [NewEntry(text: delta, at: position)]) }; state.last.held = nil/|no crash leaves the whole text in the log"
    "a retry forgets what had joined|Sources/ParleyAgents/Machine/AgentMachine+Steps.swift|/mutating func attemptFailed(/,/^    }/s/^        actions.append(.forget(path: path))\$/        forget(path)/|keeps what had joined its request for every attempt"
    "attempts counted by starts|Sources/ParleyAgents/Machine/AgentMachine+Steps.swift|s/.zero : policy.pause(after: failures(path) + 1, failure)/.zero : policy.pause(after: Int(attempt), failure)/|has its attempts counted by failures"
    "input beside the mark of a waiting turn is left|Sources/ParleyAgents/Machine/AgentMachine+Leaving.swift|s/else { markWaiting(isLeaving: true) }/else { isWriting = true; markWaiting(isLeaving: true) }/; /mutating func turnWaits(/,/^    }/s/^        perform(view) { _ in }\$/        isWriting = false/|that comes while its turn is marked as waiting"
    "the mark of a waiting turn is not given back|Sources/ParleyAgents/Machine/AgentMachine+Ends.swift|s/if end.wait == .marked { run?.isMarkedWaiting = true }/_ = end.wait/|is taken up after a crash when its turn continued"
    "a replay has another conversation|Sources/ParleyAgents/Runtime/AgentDriver+View.swift|s/Conversation(after: first - 1)/Conversation(after: journal.start.offset - 1)/|has an interrupt that began a turn"
    "what joined a turn is no part of the conversation|Sources/ParleyAgents/Machine/Conversation.swift|s/for part in turn.parts {/for part in turn.parts.prefix(0) {/|nothing that is durable is left lying"
    "a sleep ends over an interrupt|Sources/ParleyAgents/Machine/AgentMachine+Ends.swift|s/^        end.wait = run.isMarkedWaiting/        end.yieldsTo = []; end.wait = run.isMarkedWaiting/|is interrupted before a sleep ends"
    "a follow goes by name|Sources/ParleyAgents/Machine/AgentMachine+Ends.swift|s/incarnation: run?.steps\[request.path\]?.followed ?? incarnation)/incarnation: (run?.steps[request.path]?.followed ?? incarnation).flatMap { _ in nil as String? })/|never mixes the entries of two channels"
    "a turn that has ended keeps what it gave to be run|Sources/ParleyAgents/Runtime/TurnTask.swift|s/^        state.code = \[:\]\$/        _ = state.code/|is freed when it ends or is passivated"
    "no row for an entry to be told of|Sources/ParleyChannels/Outbox.swift|s/stage.put(.outbox, OutboxRow.key(channel.id, offset), \[\])/_ = offset/|lose nothing, invent nothing, and keep their ids"
    "a row comes back for a deleted agent|Sources/ParleyChannels/Commands/RowChange.swift|/^ *if ifThere, /d|leaves no row behind"
    "sealed text of every step goes|Sources/ParleyChannels/Trim.swift|s/ && position.step == text.step//|of a step goes, and not that of another step or turn beside it"
    "a message is taken again|Sources/ParleyChannels/Messages/Delivery.swift|s/ where sequence > last {/ where sequence > 0 {/|that come a second time do nothing"
    "rows stay of a fork that was refused|Sources/ParleyChannels/Messages/ForkOrder.swift|/^ *channels.messages.post(.unmake(/d|asked for twice at a time is made once"
    "a fork is gone while its name is on its way|Sources/ParleyChannels/Names.swift|s/fork.id .. isDecided == false\$/fork.id \&\& isDecided != false/|without a name while the name is on its way"
    "followers are not told|Sources/ParleyChannels/Commands/Append.swift|/^ *if !entries.isEmpty .* closes { channel.tellFollowers/d|leave every follow told or watched"
    "told and published before the commit|Sources/ParleyLog/GroupCommit.swift|s/lose(try commit(stage.finish()), &staged)/let batches = stage.finish(); settle(staged); staged = []; _ = try commit(batches)/|while a commit is in flight, no submission is answered"
)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

# What git knows of and what is new, but nothing that is built.
(cd "$root" && git ls-files --cached --others --exclude-standard -z | xargs -0 -r sh -c 'for f; do [ -e "$f" ] && printf "%s\0" "$f"; done' sh | tar --null -T - -cf -) | tar -xf - -C "$copy"
cd "$copy"

# Only the targets with those tests, and what they need: the rest need not be built.
sed -i '/^if Context.environment/,$d' Package.swift
# A target may take several lines, the further ones indented deeper.
sed -i -z -E 's/\n *(\.executable(Target)?\(|\.library\(|module\("Parley", |tests\(\n* *"Parley(System|HTTP|Models|Server|EndToEnd)Tests")[^\n]*(\n {12}[^\n]*)*//g' Package.swift

build() { swift build --build-tests --scratch-path "$copy/.build" >"$log" 2>&1; }
run_test() { swift test --skip-build --scratch-path "$copy/.build" --filter "$1" >"$log" 2>&1; }

say "building a copy"
build || { tail -30 "$log" >&2; echo "error: the copy does not build as it is" >&2; exit 1; }

say "the tests as they are"
mapfile -t tests < <(printf '%s\n' "${mutations[@]##*|}" | sort -u)
for test in "${tests[@]}"; do
    if ! run_test "$test" || ! grep -q 'Test run with [1-9]' "$log"; then
        tail -30 "$log" >&2
        echo "error: '$test' does not pass as it is, or there is no such test" >&2
        exit 1
    fi
done

rows=()
failures=0
for mutation in "${mutations[@]}"; do
    IFS='|' read -r name file edit test <<<"$mutation"
    if [ $# -gt 0 ] && ! printf '%s\n' "$@" | grep -qxF "$name"; then continue; fi
    say "$name"
    verdict=caught
    cp "$file" "$copy/original"
    sed -i "$edit" "$file"
    if cmp -s "$file" "$copy/original"; then
        verdict="NOT APPLIED: the code has changed, change the mutation"
    elif ! build; then
        grep 'error:' "$log" | head -3 >&2
        verdict="DOES NOT BUILD"
    elif run_test "$test"; then
        verdict="SURVIVED"
    elif ! grep -q 'Test run with [1-9].*failed' "$log"; then
        # It ended otherwise than by a failed expectation: by a trap, say. That too is noticed.
        verdict="caught (the test process ended)"
    fi
    cp "$copy/original" "$file"
    case $verdict in caught*) ;; *) failures=$((failures + 1)) ;; esac
    rows+=("$(printf '%-40s %-55s %s' "$name" "$test" "$verdict")")
done

printf '\n%-40s %-55s %s\n' "mutation" "test" "verdict"
printf '%s\n' "${rows[@]}"
printf '%d mutations, %d not caught\n' "${#rows[@]}" "$failures"
[ "$failures" -eq 0 ]
