# How many messages a second, durable, 100 of 256 B a request, and does it hold?
# Parley: a JSON array a POST. Redis: 100 XADD pipelined, appendfsync always, which it syncs together.

start_parley "$bin/parley" serve
if [ "$tiny" ]; then
    "$bin/parley-load" appends --parley "$parley" --seconds 0.3 --rounds 1 --connections 4 --channels 16 --batch 100
    return
fi
start_redis
"$bin/parley-load" appends --parley "$parley" --redis "$redis" --batch 100 --connections 16 --channels 1000 \
    --seconds "${SECONDS_EACH:-4}" --rounds "${ROUNDS:-5}"
echo "held for 30 s:"
"$bin/parley-load" appends --parley "$parley" --batch 100 --connections 16 --channels 1000 --seconds 30 --rounds 1
