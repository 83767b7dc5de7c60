#!/bin/bash
@{directives}

# Flux runs this on the first node of the job, in an instance of its own. Ahead of the time limit it warns script and
# workers (--signal), and this script submits the next job of the run itself, to the instance around its own. After the
# failure of a node, nobody starts it again but a program that follows the run.

job=@{job_id}
job=${job/#ƒ/f}
printf -v now '%(%s)T' -1
left=$(flux job timeleft 2>/dev/null)
deadline=${left:+$((now + ${left%.*}))}

@{steps}
