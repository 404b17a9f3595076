# How long from a producer's send until a reader has the message, at a steady rate?
# Parley: POST and server-sent events. Redis: XADD with appendfsync always and XREAD BLOCK. PostgreSQL: INSERT with NOTIFY, and LISTEN.

start_parley "$bin/parley" serve
if [ "$tiny" ]; then
    "$bin/parley-load" latency --parley "$parley" --seconds 0.5 --rounds 1 --rate 100 --readers 5
    return
fi
start_redis
start_postgres
for rate in 100 1000; do
    for readers in 1 100; do
        "$bin/parley-load" latency --parley "$parley" --redis "$redis" --postgres "$postgres" \
            --rate $rate --readers $readers --seconds "${SECONDS_EACH:-4}" --rounds "${ROUNDS:-5}"
    done
done
# PostgreSQL has no connections for so many.
"$bin/parley-load" latency --parley "$parley" --redis "$redis" --rate 50 --readers 1000 --seconds "${SECONDS_EACH:-4}" --rounds "${ROUNDS:-5}"
