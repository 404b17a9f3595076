# How long does it take to say who did what, in a channel of 100,000 entries: 13,000 payments, each asked for, decided and made?
# The rare question is the dear one: it looks at every entry and finds one denial, or none.

start_parley "$bin/parley-bench-agents"
url=http://127.0.0.1:${parley%/*}
each=1000
turns=13
[ -z "$tiny" ] || each=20 turns=2

say_to_treasurer() {
    curl -sf -o /dev/null -H 'Content-Type: application/json' --data-binary @- "$url/v1/agents/treasurer/one"
}

# Waits until the agent does what is said: waiting for everybody's answers, or nothing any more.
until_treasurer() {
    for _ in $(seq 600); do
        curl -sf "$url/v1/agents/treasurer/one" | grep -q "$1" && return
        sleep 0.1
    done
    fail "the treasurer is not at $1"
}

offset() { curl -sfI "$url/v1/stream/agents/treasurer/one" | tr -d '\r' | awk 'tolower($1) == "stream-next-offset:" {print $2}'; }

before=0000000000000000
for number in $(seq $turns); do
    turn=$(printf '%016x' $((16#$before + 1)))
    echo "{\"type\": \"message\", \"data\": {\"count\": $each}}" | say_to_treasurer
    until_treasurer "pay/$((each - 1))/payment"
    # The middle one has a single denial.
    seq 0 $((each - 1)) | awk -v turn="$turn" -v no=$((number == turns / 2 + 1 ? each / 2 : -1)) '
        { entry = sprintf("{\"type\":\"%s\",\"approval\":\"%s/pay/%d/payment\"}", $1 == no ? "deny" : "approve", turn, $1) }
        { printf "%s%s", NR == 1 ? "[" : ",", entry } END { print "]" }' | say_to_treasurer
    until_treasurer '"state":"idle"'
    before=$(offset)
done
echo "entries in the channel: $((16#$before))"

# The middle of 15 requests after one that is not counted, from outside: connection, answer and all.
ask() {
    local question=$1 bytes times
    bytes=$(curl -sf "$url/v1/agents/treasurer/one/$question" | wc -c)
    times=$(for _ in $(seq 15); do curl -sf -o /dev/null -w '%{time_total}\n' "$url/v1/agents/treasurer/one/$question"; done | sort -n)
    printf '%-44s %8s ms   longest %8s ms   %9s bytes\n' "$question" \
        "$(sed -n 8p <<<"$times" | awk '{printf "%.1f", $1 * 1000}')" "$(tail -1 <<<"$times" | awk '{printf "%.1f", $1 * 1000}')" "$bytes"
}

ask audit
ask 'audit?limit=1000'
ask 'audit?type=approval&limit=1000'
ask 'audit?type=deny'
ask 'audit?by=nobody'
ask 'audit?limit=1000&before=0000000000001000'
ask 'trace?limit=1'
ask trace
ask 'trace?turn=0000000000000001'
