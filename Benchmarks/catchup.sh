# How fast does a reader get a channel of 1 GB that it has not seen, with the data in the page cache and without, and what memory does that take?
# Beside a process that does nothing but sendfile(2) of a file of that size, and beside Redis, which has everything in memory.

print_parley
megabytes=1000
[ -z "$tiny" ] || megabytes=4
mkdir "$benchmark_folder/www"
head -c ${megabytes}000000 /dev/zero >"$benchmark_folder/www/file"
python3 - "$benchmark_folder/www/file" >"$benchmark_folder/floor" <<'PYTHON' &
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    with connection, open(sys.argv[1], "rb") as file:
        connection.sendfile(file)
PYTHON
started_pids+=($!)
while [ ! -s "$benchmark_folder/floor" ]; do sleep 0.1; done
arguments=(--program "$bin/parley" --folder "$benchmark_folder" --megabytes $megabytes --floor "$(cat "$benchmark_folder/floor")")
if [ "$tiny" ]; then
    "$bin/parley-load" catchup "${arguments[@]}" --rounds 1
    return
fi
start_redis
"$bin/parley-load" catchup "${arguments[@]}" --redis "$redis" --rounds "${ROUNDS:-3}"
