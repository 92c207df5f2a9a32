"""What Prefect knows us by: the name of every deployment, the pools of workers, and their queues."""

NAME = "chiron"  # of every deployment: `intake/chiron`
CPU, GPU = "cpu", "gpu"
QUEUES = ("urgent", "scheduled", "backfill")  # the first is served first
POOLS = {
    CPU: "Finding scans, planning, tidying: one worker is enough.",
    GPU: "Reconstruction: one worker for each card, or one for a machine without a card.",
}
LAUNCHER = "CHIRON_WORKER"  # variable with the process id of a worker, for the runs that end with it
