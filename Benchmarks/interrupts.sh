# How long from an interrupt until the model's connection is closed, at 50 tokens a second?
# Beside a client that closes its own connection to the same upstream, which is the floor. The upstream is part of the load's loop.

mkdir "$benchmark_folder/agents"
printf -- '---\nkind: writer\n---\nYou write.\n' >"$benchmark_folder/agents/writer.md"
print_parley
if [ "$tiny" ]; then
    "$bin/parley-load" interrupts --program "$bin/parley" --folder "$benchmark_folder" --agents 4 --waves 1 --rounds 1
    return
fi
"$bin/parley-load" interrupts --program "$bin/parley" --folder "$benchmark_folder" --rounds "${ROUNDS:-3}"
