-- The tables of version 3, which a new file gets at once. All names have a prefix, so that the file may hold its user's
-- own tables beside ours.
--
-- States are numbers: 0 ready, 1 delayed, 2 with a worker, 3 dead, 4 done. Times are nanoseconds since 1970. `rank` is
-- the negative priority, so that every index runs upwards. What `due` means depends on the state: when a delayed job
-- becomes ready, when a lease runs out, when one that is done is deleted.
--
-- A column that came later stands where ALTER TABLE puts it, so that a file which has grown is the same as a new one.
CREATE TABLE tidegate_meta (version INTEGER NOT NULL, max_payload INTEGER NOT NULL) STRICT;
INSERT INTO tidegate_meta VALUES (3, 16777216);
CREATE TABLE tidegate_counters (
    seq INTEGER NOT NULL,
    done INTEGER NOT NULL,
    dropped_dead INTEGER NOT NULL,
    -- How many there are now: dead, and done and kept.
    dead INTEGER NOT NULL,
    kept INTEGER NOT NULL
, superseded INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO tidegate_counters VALUES (0, 0, 0, 0, 0, 0);
-- superseded_by: the newer job that has taken the place of this one, which is with a worker and does not wait once more,
-- or has ended. Behind the payload it is cheap all the same: that it is NULL stands at the head of the row.
CREATE TABLE tidegate_jobs (
    id INTEGER PRIMARY KEY,
    state INTEGER NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    rank INTEGER NOT NULL,
    ord INTEGER NOT NULL,
    due INTEGER NOT NULL,
    entered INTEGER NOT NULL,
    since INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    max_attempts INTEGER,
    timeout INTEGER,
    attempts INTEGER NOT NULL,
    lapses INTEGER NOT NULL,
    token INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    unique_key TEXT,
    window INTEGER,
    last_error TEXT,
    -- How many attempts have ended and were written down; most jobs are done in their first and gone with it.
    history INTEGER NOT NULL DEFAULT 0,
    -- When it was completed by INSERT INTO tidegate_complete; from then on it is done, whatever its worker says.
    completed INTEGER,
    -- Last: what stands behind a long one is slow to read.
    payload BLOB NOT NULL
, superseded_by INTEGER) STRICT;
CREATE INDEX tidegate_jobs_ready ON tidegate_jobs (queue, kind, rank, ord) WHERE state = 0;
-- Those that were in another state before. Most jobs never are here, and pay nothing for it: of the others the id says
-- when they came.
CREATE INDEX tidegate_jobs_moved ON tidegate_jobs (queue, kind, entered) WHERE state = 0 AND entered <> id;
CREATE INDEX tidegate_jobs_delayed ON tidegate_jobs (due, ord) WHERE state = 1;
CREATE INDEX tidegate_jobs_leased ON tidegate_jobs (due, id) WHERE state = 2;
CREATE INDEX tidegate_jobs_dead ON tidegate_jobs (entered) WHERE state = 3;
CREATE INDEX tidegate_jobs_done ON tidegate_jobs (due, id) WHERE state = 4;
CREATE INDEX tidegate_jobs_running ON tidegate_jobs (kind, unique_key) WHERE state = 2 AND unique_key IS NOT NULL;
CREATE TABLE tidegate_unique_keys (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    seq INTEGER NOT NULL,
    job INTEGER NOT NULL,
    until INTEGER,
    PRIMARY KEY (kind, key, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX tidegate_unique_keys_until ON tidegate_unique_keys (until) WHERE until IS NOT NULL;
-- The attempts that have ended: 0 done, 1 retried, 2 rejected, 3 released, 4 lapsed, 5 superseded.
CREATE TABLE tidegate_attempts (
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    came_to INTEGER NOT NULL,
    error TEXT,
    output BLOB,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
-- What a program that has a queue to itself wants to be committed together with its jobs.
CREATE TABLE tidegate_notes (name TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID;
