-- What version 3 has and version 2 has not. The doors are made anew.
DROP VIEW tidegate_complete;
DROP VIEW tidegate_enqueue;
DROP VIEW tidegate_clock;
DROP TABLE tidegate_enqueued;
UPDATE tidegate_meta SET version = 3;
-- A newer job may take the place of an older one.
ALTER TABLE tidegate_counters ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tidegate_jobs ADD COLUMN superseded_by INTEGER;
CREATE INDEX tidegate_jobs_running ON tidegate_jobs (kind, unique_key) WHERE state = 2 AND unique_key IS NOT NULL;
-- Lists are gone through by keys, from what has been there longest.
CREATE INDEX tidegate_jobs_moved ON tidegate_jobs (queue, kind, entered) WHERE state = 0 AND entered <> id;
