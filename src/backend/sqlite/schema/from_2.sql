-- From version 2, in place.
CREATE INDEX tidegate_jobs_moved ON tidegate_jobs (queue, kind, entered) WHERE state = 0 AND entered <> id;
UPDATE tidegate_meta SET version = 3;
