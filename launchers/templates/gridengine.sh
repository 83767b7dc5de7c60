#!/bin/bash
@{directives}

# Grid Engine runs this on the first host of the job. Some time before it kills the job it sends USR2 (-notify): at the
# walltime, and for qdel. Where the walltime is near, this script submits the next job of the run itself. After the failure
# of a host, Grid Engine starts this one again, with the same id (-r y).

job=@{job_id}
printf -v now '%(%s)T' -1
deadline=@{deadline}

@{steps}
