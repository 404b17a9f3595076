# What do 100,000 agents cost that only wait (starts, memory, processor time), and how fast does one wake?
# Beside the same server without any agent.

print_parley
if [ "$tiny" ]; then
    "$bin/parley-load" waiting --program "$bin/parley-bench-agents" --folder "$benchmark_folder" --agents 300 --rounds 1 --quiet 0.2 --wakes 20
    return
fi
"$bin/parley-load" waiting --program "$bin/parley-bench-agents" --folder "$benchmark_folder" --rounds "${ROUNDS:-3}"
