# How many deliveries a second, from one channel to 1,000 readers, when the producer sends as fast as they come along?
# Parley: POST of JSON arrays, and server-sent events. Redis: pipelined XADD with appendfsync always, and XREAD BLOCK.

start_parley "$bin/parley" serve
if [ "$tiny" ]; then
    "$bin/parley-load" fanout --parley "$parley" --seconds 0.5 --rounds 1 --readers 20 --batch 4
    return
fi
start_redis
for batch in 1 16 64; do
    "$bin/parley-load" fanout --parley "$parley" --redis "$redis" --batch $batch --seconds "${SECONDS_EACH:-3}" --rounds "${ROUNDS:-3}"
done
