#!/bin/bash
@{directives}

# Slurm runs this on the first node of the job. Ahead of the walltime it warns the workers (--signal), and this script
# submits the next job of the run itself; so it does when the job is preempted with a grace time, of which the workers are
# warned. After the failure of a node, or a preemption without, Slurm requeues this one, with the same id (--requeue).

job=@{job_id}
printf -v now '%(%s)T' -1
deadline=$SLURM_JOB_END_TIME
if [ -z "$deadline" ]; then
    end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)
    [ -z "$end" ] || deadline=$(date -d "$end" +%s)  # of nothing, it would be midnight
fi
[ -n "$deadline" ] || deadline=@{deadline}

@{steps}
