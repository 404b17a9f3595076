# What does a token cost, from a model at 50 tokens a second through the server to a reader, for one agent and for 100 at once?
# Beside a PostgreSQL row and commit a token, with NOTIFY for the readers, and with readers that poll each 100 ms.
# The model runs inside Parley's process and the rows are made by the load client, so Parley's processor time includes the model's.

start_parley "$bin/parley-bench-agents"
if [ "$tiny" ]; then
    "$bin/parley-load" tokens --parley "$parley" --rounds 1 --seconds 1 --agents 4
    return
fi
start_postgres
"$bin/parley-load" tokens --parley "$parley" --postgres "$postgres" --rounds "${ROUNDS:-3}"
