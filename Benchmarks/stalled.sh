# Do 1,000 readers that have stopped reading hold up the 10 that read the same channel, and what memory do they hold?
# Beside the same channel and readers without them.

print_parley
if [ "$tiny" ]; then
    "$bin/parley-load" stalled --program "$bin/parley" --folder "$benchmark_folder" --stalled 10 --readers 2 --rate 100 --seconds 0.4 --rounds 1
    return
fi
"$bin/parley-load" stalled --program "$bin/parley" --folder "$benchmark_folder" --seconds "${SECONDS_EACH:-5}" --rounds "${ROUNDS:-3}"
