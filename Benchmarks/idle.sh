# What memory does a reader cost that waits and gets nothing?
# Beside a connection that is merely open, and beside a client of Redis that waits in XREAD BLOCK.

print_parley
if [ "$tiny" ]; then
    "$bin/parley-load" idle --program "$bin/parley" --folder "$benchmark_folder" --readers 100
    return
fi
start_redis
redis-cli -p "${redis%/*}" config set maxclients 12000 >/dev/null
"$bin/parley-load" idle --program "$bin/parley" --folder "$benchmark_folder" --redis "$redis"
