# How many durable appends a second, 256 B each, over 64 connections with one request in flight each?
# Beside Redis XADD with appendfsync always, NATS JetStream with sync_interval always, and a PostgreSQL row and commit a message,
# driven by the same loop.

start_parley "$bin/parley" serve
if [ "$tiny" ]; then
    "$bin/parley-load" appends --parley "$parley" --seconds 0.3 --rounds 1 --connections 8 --channels 16
    return
fi
start_redis
start_nats
start_postgres
for channels in 1000 64; do
    "$bin/parley-load" appends --parley "$parley" --redis "$redis" --nats "$nats" --postgres "$postgres" \
        --channels $channels --seconds "${SECONDS_EACH:-4}" --rounds "${ROUNDS:-5}"
done
count_syncs parley "$parley"
count_syncs redis "$redis"
count_syncs postgres "$postgres"
