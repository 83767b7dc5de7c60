#!/bin/bash
@{directives}

# PBS runs this on the first node of the job. It gives no warning ahead of the walltime: the workers go by the deadline,
# and this script submits the next job of the run itself. After the failure of a node, or a preemption, PBS requeues this
# one, with the same id (-r y).

job=@{job_id}
printf -v now '%(%s)T' -1
deadline=@{deadline}

@{steps}
