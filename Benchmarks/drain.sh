# How long does a node take to stop with readers and writers on it, and do they go on at the next one with nothing lost and nothing twice?

rounds=(100 1000)
[ -z "$tiny" ] || rounds=(20)
for readers in "${rounds[@]}"; do
    echo "-- $readers live readers of 10 streams, 8 writers"
    data="$benchmark_folder/drain-$readers"
    port=$(free_port)
    start_drained() {
        "$bin/parley" serve --listen "127.0.0.1:$port" --data "$data" --agents "$benchmark_folder" 2>"$benchmark_folder/parley.log" &
        drained=$!
        started_pids+=("$drained")
    }
    start_drained
    # It sends the signal to the first, and says when to start the second on the same port and folder.
    coproc load { python3 Benchmarks/drain.py "$port" "$drained" "$readers"; }
    load_pid=$! load_output=${load[0]}
    while read -r line <&"$load_output"; do
        if [ "$line" = restart ]; then
            wait "$drained" || fail "the node ended with status $?: $(tail -3 "$benchmark_folder/parley.log")"
            start_drained
        else
            echo "$line"
        fi
    done
    wait "$load_pid" || fail "the load failed"
    kill -TERM "$drained"
    wait "$drained" || true
done
