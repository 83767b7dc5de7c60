#!/bin/bash
@{directives}

# LSF runs this on the first host of the job. Ahead of the run limit it warns the job (-wt, -wa), and this script submits
# the next job of the run itself. After the failure of a host, LSF runs this one again, with the same id (-r).

job=@{job_id}
printf -v now '%(%s)T' -1
deadline=@{deadline}

@{steps}
