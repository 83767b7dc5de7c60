run=@{run}
workers=@{workers}
python=@{python}

# No program tells the time: signals to all processes of the job would end it.
clock() { printf -v now '%(%s)T' -1; }
tell() {
    clock
    printf '{"time_s": %s, "event": "%s", "job_id": "%s"%s}\n' "$now" "$1" "$job" "${2-}" >>"$run/events.jsonl"
}
told= pids=()
warn() {
    told=$1
    printf '%(%c)T told to end by %s\n' -1 "$1"
    clock
    [ -n "$deadline" ] && ((now > deadline - @{early_s})) || tell told_to_end ", \"signal\": \"$1\""
    [ ${#pids[@]} = 0 ] || kill -USR1 "${pids[@]}" 2>/dev/null
}
for name in TERM INT USR1 USR2; do trap "warn $name" "$name"; done
exec >>"$run/job.$job.log" 2>&1 </dev/null
printf '%(%c)T job %s on %s, until %s\n' -1 "$job" "$(uname -n)" "${deadline:-no known time}"
# Where the prelude ends the script.
trap 'code=$?; tell script_ended ", \"code\": $code"; finish $code' EXIT
finish() {
    trap - EXIT
    tell job_ended
    echo "$1" >"$run/job.$job.exit"
    exit "$1"
}
tell job_started
printf '{"state": "running", "job_id": "%s", "job_state": "running", "time_s": %s}\n' "$job" "$now" \
    >"$run/status.json.new" && chmod 600 "$run/status.json.new" && mv "$run/status.json.new" "$run/status.json"
rm -f "$run/job.$job.exit"
if [ -e "$run/stop" ]; then
    echo "The run is to end: nothing is started."
    finish 0
fi
cd @{directory} || exit 1

export ACADEMY_HPC_RUN=$run ACADEMY_HPC_JOB=$job ACADEMY_HPC_DEADLINE=$deadline
# Some starters hand no environment on.
printf '%s\n' "export ACADEMY_HPC_JOB='$job' ACADEMY_HPC_DEADLINE='$deadline'" >"$run/job.env"
@{environment}
# A prelude may have used these names, or made the shell strict.
set +eu
run=@{run} workers=@{workers} python=@{python} job=$ACADEMY_HPC_JOB deadline=$ACADEMY_HPC_DEADLINE

@{exchange_start}
if [ -z "$told" ]; then
@{start}
    [ -z "$told" ] || kill -USR1 "${pids[@]}" 2>/dev/null  # meanwhile
fi
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
done
@{exchange_end}
# A worker that has ended for good has said so; 75 means that it wants to go on.
again= failed=0
for ((rank = 0; rank < workers; rank++)); do
    code=
    { read -r code <"$run/workers/$rank.exit"; } 2>/dev/null
    case $code in
        0) ;;
        75 | '') again=$again,$rank ;;
        *) failed=1 ;;
    esac
done
if [ -n "$again" ]; then
    printf '%(%c)T workers that want to go on: %s\n' -1 "${again#,}"
    @{outside}ACADEMY_HPC_TOLD=$told "$python" -m academy_hpc job resubmit "$run"
fi
finish $failed
