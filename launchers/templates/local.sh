#!/bin/bash
@{directives}
# Runs on this machine, in a session of its own. When its walltime is near, it starts the next job of the run itself.

job=@{job_id}
printf -v now '%(%s)T' -1
deadline=@{deadline}

@{steps}
