#!/bin/bash
# What the starter runs once for each rank of a job: it keeps one worker going. A worker that is killed is started again
# here; one that ends by itself, or because it was told to, is not.

run=@{run}
python=@{python}
rank=@{rank}
if [ -z "$rank" ]; then
    echo "$(date) $(uname -n): none of @{rank_variables} is set: the starter tells no rank" >>"$run/workers/unknown.log"
    exit 1
fi
mine=$run/workers/$rank
exec >>"$mine.log" 2>&1 </dev/null
. "$run/job.env"
export ACADEMY_HPC_RUN=$run ACADEMY_HPC_RANK=$rank ACADEMY_HPC_RANKS=@{workers}
cd @{directory} || exit 1
@{environment}
# A prelude may have used these names, or made the shell strict.
set +eu
run=$ACADEMY_HPC_RUN python=@{python} rank=$ACADEMY_HPC_RANK mine=$ACADEMY_HPC_RUN/workers/$ACADEMY_HPC_RANK

# Another life may have begun elsewhere, where this node was cut off: the exit code of the rank is not for this one to say.
ended() {
    local latest=
    { read -r latest <"$mine.attempt"; } 2>/dev/null
    [ -z "$ACADEMY_HPC_ATTEMPT" ] || [ "$latest" = "$ACADEMY_HPC_ATTEMPT" ] || exit "$1"
    echo "$1" >"$mine.exit.new" && mv "$mine.exit.new" "$mine.exit"
    exit "$1"
}
code=
{ read -r code <"$mine.exit"; } 2>/dev/null
[ -z "$code" ] || [ "$code" = 75 ] || exit "$code"  # it had ended for good in an earlier job
rm -f "$mine.exit"

unset ACADEMY_HPC_ATTEMPT
told= child= pid=
pass_on() {
    told=$1
    while [ -n "$child" ] && kill -0 "$child" 2>/dev/null; do
        { read -r pid <"$mine.pid"; } 2>/dev/null && break
        sleep 0.1  # it is being started
    done
    [ -z "$pid" ] || kill -s "$1" "$pid" 2>/dev/null
}
for name in TERM INT USR1 USR2; do trap "pass_on $name" "$name"; done
until_gone() { while kill -0 "$child" 2>/dev/null; do wait "$child"; done; }

# One life: it sets `code`. Signals that come while bash waits for a child in the background can cost it the child's exit
# code, so what waits for the worker has it in the foreground.
live() {
    rm -f "$mine.code" "$mine.pid"
    (
        for name in TERM INT USR1 USR2; do trap : "$name"; done
        bash -c 'echo $$ >"$0.pid" && exec "$@"' "$mine" "$python" -m academy_hpc worker --spec "$run/spec.json"
        echo $? >"$mine.code"
    ) &
    child=$!
    [ -z "$told" ] || pass_on "$told"  # before it was there
    until_gone
    child= pid= code=137
    { read -r code <"$mine.code"; } 2>/dev/null
    rm -f "$mine.pid"
}

pause=1
for ((restarts = 0; ; restarts++)); do
    [ -z "$told" ] || ended 75
    attempt=0
    { read -r attempt <"$mine.attempt"; } 2>/dev/null
    export ACADEMY_HPC_ATTEMPT=$((attempt + 1))
    echo $ACADEMY_HPC_ATTEMPT >"$mine.attempt"
    printf '%(%c)T ' -1
    echo "$(uname -n): life $ACADEMY_HPC_ATTEMPT of worker $rank, job $ACADEMY_HPC_JOB"
    live
    ((code > 128)) || ended "$code"
    [ -z "$told" ] || ended 75  # by those who had told it to end, or before it could listen
    reason="it was killed by SIG$(kill -l $((code - 128)))"
    [ "$code" != 137 ] || reason="$reason, as happens when there is no memory left"
    printf '%(%c)T worker %s: %s\n' -1 "$rank" "$reason"
    printf -v now '%(%s)T' -1
    printf '{"time_s": %s, "event": "worker_killed", "rank": %s, "attempt": %s, "signal": %s}\n' \
        "$now" "$rank" "$ACADEMY_HPC_ATTEMPT" $((code - 128)) >>"$mine.events.jsonl"
    [ ! -e "$run/stop" ] || ended "$code"
    if ((restarts == @{max_restarts})); then
        "$python" -m academy_hpc worker --spec "$run/spec.json" --give-up "$reason, $((restarts + 1)) times in one job"
        ended "$code"
    fi
    sleep $pause &
    child=$!
    while [ -z "$told" ] && kill -0 "$child" 2>/dev/null; do wait "$child"; done
    child=
    pause=$((pause * 2 > 60 ? 60 : pause * 2))
done
