# What do 1,000,000 unused channels cost: at the start, in memory, and when one is read for the first time?
# Beside the same server without any, and beside one pread of 4 KiB from the same disk.

print_parley
if [ "$tiny" ]; then
    "$bin/parley-load" cold --program "$bin/parley" --folder "$benchmark_folder" --channels 300 --reads 50 --rounds 1
    return
fi
"$bin/parley-load" cold --program "$bin/parley" --folder "$benchmark_folder" --rounds "${ROUNDS:-3}"
